"""Runs: a configuration trained into a folder, and a model taken out of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

from hellm_pyg import checkpoint
from hellm_pyg.assembly import (
    build_data,
    build_llm,
    build_loader,
    build_model,
    check_catalogue,
    resolve_paths,
)
from hellm_pyg.config import (
    Config,
    TrainConfig,
    load_run_config,
    save_config,
    to_dict,
)
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.evaluation import Evaluation, Protocol, evaluate
from hellm_pyg.keys import in_words_of

CONFIG, IDS, WEIGHTS = 'config.yaml', 'ids.json', 'model.safetensors'
METRICS, RESULTS, LLM_FOLDER = 'metrics.json', 'evaluation.json', 'model'
STATES = ('state', '.state.old')  # the second one while the first is swapped

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """A trained model beside everything that it was trained with."""

    folder: Path
    config: Config
    data: HeteroData
    ids: IdMap
    model: Any


def pretrain(config: Config, run_dir: str | Path) -> dict[str, float]:
    """Trains a model of phase 1 and exports its vectors for phase 2.

    The folder gets ``config.yaml`` and what the
    :class:`~hellm_pyg.training.Trainer` leaves. The same call goes on where a
    stopped one was.

    Args:
        config: The experiment, with a section ``model``.
        run_dir: Folder of the run.

    Returns:
        The best metrics on validation.

    Raises:
        ValueError: If the configuration cannot be run, or the folder holds a run
            of another one.
    """
    if config.llm is not None or not config.model:
        raise ValueError(
            "'pretrain' needs a recipe with a section 'model' and 'llm: null' (got "
            f'{_phase(config)})'
        )
    run_dir, config = Path(run_dir), resolve_paths(config)
    data, ids = build_data(config.data)
    seed_everything(config.train.seed)
    model: Any = build_model(config, data)
    _claim(run_dir, config)
    return _train(config, run_dir, model, data, ids)


def finetune(config: Config, run_dir: str | Path) -> dict[str, float]:
    """Trains a language-model recommender on the tables of phase 1.

    The folder gets ``config.yaml`` and what the
    :class:`~hellm_pyg.training.Trainer` leaves, the model as
    ``save_pretrained`` writes it. The same call goes on where a stopped one was.

    Args:
        config: The experiment, with a section ``llm``.
        run_dir: Folder of the run.

    Returns:
        The best metrics on validation.

    Raises:
        ValueError: If the configuration cannot be run, a table is of other data,
            or the folder holds a run of another configuration.
    """
    if config.llm is None or config.model:
        raise ValueError(
            "'finetune' needs a recipe with a section 'llm' and 'model: {}' (got "
            f'{_phase(config)})'
        )
    run_dir, config = Path(run_dir), resolve_paths(config)
    data, ids = build_data(config.data)
    seed_everything(config.train.seed)
    model = build_llm(config, data, ids)
    _claim(run_dir, config)
    return _train(config, run_dir, model, data, ids)


def _phase(config: Config) -> str:
    model, llm = config.model.get('name'), config.llm and config.llm.name
    return f'model.name={model}, llm.name={llm}'


def _train(
    config: Config, run_dir: Path, model: Any, data: HeteroData, ids: IdMap
) -> dict[str, float]:
    from hellm_pyg.training import Trainer

    loader = build_loader(config, data, model)
    if loader is not None:
        settings = {'model': config.model, 'llm': to_dict(config)['llm']}
        with in_words_of(TrainConfig, 'train'):
            trainer = Trainer(
                model, data, loader, config.train, run_dir, config.eval, ids, settings
            )
        return trainer.fit()
    model.fit(data)
    result = _evaluate(config, model, data, 'val')
    checkpoint.save_tensors(run_dir / WEIGHTS, model.state_dict())
    checkpoint.save_json(run_dir / METRICS, result.to_dict())
    ids.save(run_dir / IDS)
    return result.metrics


def _evaluate(config: Config, model: Any, data: HeteroData, split: Any) -> Evaluation:
    protocol = Protocol(config.eval.history, config.eval.mask)
    return evaluate(
        model,
        data,
        split,
        config.eval.ks,
        protocol,
        config.eval.batch_size,
        max_len=config.train.max_len,
        progress=True,
    )


def load_run(run_dir: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Loads a trained model with its data.

    Args:
        run_dir: Folder of a finished run.
        overrides: Changes of the configuration, as ``data.root=...`` for data
            that have moved.

    Raises:
        ValueError: If there is no finished run, or the data are not those that
            the model was trained on.
    """
    run_dir = Path(run_dir)
    if not (run_dir / CONFIG).is_file():
        raise ValueError(f"'run' needs to be the folder of a run (got '{run_dir}')")
    config = load_run_config(run_dir / CONFIG, overrides)
    if not (run_dir / METRICS).is_file():
        raise ValueError(
            f"'run' needs to be the folder of a finished run (got '{run_dir}', which "
            f'is not trained to its end: the command that began it goes on)'
        )
    data, ids = build_data(config.data)
    check_catalogue(run_dir, ids)
    settings = checkpoint.load_json(run_dir / METRICS, dict).get('settings') or {}
    trained_on = settings.get('data')
    if trained_on not in (None, data.fingerprint):
        logger.warning(
            '%s: the interactions or features have changed since it was trained; its '
            'users and items are the same',
            run_dir,
        )
    model: Any
    if config.llm is None:
        model = build_model(config, data)
        if build_loader(config, data, model) is None:
            model.fit(data)  # gives what it counts the right shape
        state = checkpoint.load_tensors(run_dir / WEIGHTS, model.state_dict())
        model.load_state_dict(state)
    else:
        from hellm_pyg.llm.recommender import LLMRecommender

        model = LLMRecommender.from_pretrained(
            run_dir / LLM_FOLDER, fingerprint=ids.fingerprint
        )
    return Run(run_dir, config, data, ids, model.eval())


def evaluate_run(
    run_dir: str | Path, split: str = 'test', overrides: Sequence[str] = ()
) -> Evaluation:
    """Ranks every user's held-out item and keeps the result with the run.

    Metrics go to ``evaluation.json`` under the split and the protocol, ranks to
    ``ranks-<split>-<history>-<mask>.safetensors``.

    Args:
        run_dir: Folder of a finished run.
        split: ``'val'`` or ``'test'``.
        overrides: Changes of the configuration, as ``eval.mask=none``.

    Raises:
        ValueError: See :func:`load_run`.
    """
    run = load_run(run_dir, overrides)
    result = _evaluate(run.config, run.model, run.data, split)
    path = run.folder / RESULTS
    results = checkpoint.load_json(path, dict) if path.is_file() else {}
    results[f'{split}, {result.protocol}'] = result.to_dict()
    checkpoint.save_json(path, results)
    name = f'ranks-{split}-{result.protocol.history}-{result.protocol.mask}.safetensors'
    ranks = {'rank': result.rank, 'user': result.user}
    checkpoint.save_tensors(run.folder / name, ranks)
    return result


def _claim(run_dir: Path, config: Config) -> None:
    """Writes the configuration into a run folder, or checks that it is the same.

    A folder without any state, of a run that failed at once, is there to be used.
    """
    path = run_dir / CONFIG
    begun = any((run_dir / name).exists() for name in (*STATES, METRICS))
    if not (path.is_file() and begun):
        run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, path)
        return
    old, new = _flat(to_dict(load_run_config(path))), _flat(to_dict(config))
    for key in sorted({*old, *new} - {'train.save_minutes'}):
        if old.get(key) != new.get(key):
            raise ValueError(
                f"'{run_dir}' holds a run of another configuration: '{key}' is "
                f'{old.get(key)!r} there (got {new.get(key)!r}); choose another folder '
                f'or remove this one'
            )


def _flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f'{prefix}{key}.')
        else:
            flat[f'{prefix}{key}'] = value
    return flat
