"""Runs: a configuration trained into a folder, and a model taken out of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import ModuleList
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

from hellm_pyg import checkpoint
from hellm_pyg.assembly import (
    build_data,
    build_llm,
    build_loader,
    build_model,
    resolve_paths,
    training_data,
)
from hellm_pyg.config import (
    Config,
    EnsembleConfig,
    TrainConfig,
    load_run_config,
    to_dict,
)
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.evaluation import Evaluation, Protocol, choose_weights, evaluate
from hellm_pyg.held_out import TRAINED_ON, check_held_out
from hellm_pyg.keys import in_words_of
from hellm_pyg.refit import chosen_epochs, chosen_weights, former_run, validation
from hellm_pyg.run_folder import (
    CONFIG,
    FILES,
    IDS,
    METRICS,
    WEIGHTS,
    changed_members,
    check_data,
    check_finished,
    check_members,
    check_unchanged,
    claim,
    copies,
    copy_members,
    differing,
    is_without_state,
    load_members,
    load_model,
    read_metrics,
    with_graph_of,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


RESULTS = 'evaluation.json'

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
        The best metrics on validation; none where its items are trained on.

    Raises:
        ValueError: If the configuration cannot be run, or the folder holds a run
            of another one.
    """
    _check_phase('pretrain', 'model', config)
    run_dir, config = Path(run_dir), resolve_paths(config)
    accelerator, data, ids = _prepare(config)
    model: Any = build_model(config, data)
    claim(run_dir, config, accelerator.is_main_process)
    return _train(config, run_dir, model, data, ids, accelerator)


def finetune(config: Config, run_dir: str | Path) -> dict[str, float]:
    """Trains a language-model recommender on the tables of phase 1.

    The folder gets ``config.yaml`` and what the
    :class:`~hellm_pyg.training.Trainer` leaves, the model as
    ``save_pretrained`` writes it. The same call goes on where a stopped one was.

    Args:
        config: The experiment, with a section ``llm``.
        run_dir: Folder of the run.

    Returns:
        The best metrics on validation; none where its items are trained on.

    Raises:
        ValueError: If the configuration cannot be run, a table is of other data,
            or the folder holds a run of another configuration.
    """
    _check_phase('finetune', 'llm', config)
    run_dir, config = Path(run_dir), resolve_paths(config)
    accelerator, data, ids = _prepare(config)
    model = build_llm(config, data, ids)
    claim(run_dir, config, accelerator.is_main_process)
    return _train(config, run_dir, model, data, ids, accelerator)


def ensemble(config: Config, run_dir: str | Path) -> dict[str, float]:
    """Combines finished runs, with weights that are chosen on validation.

    The folder gets ``config.yaml``, ``metrics.json`` with the weights, ``ids.json``
    and in ``members/`` copies of all that the model is loaded from: the runs
    themselves may go. The same call in a finished folder changes nothing.

    Args:
        config: The experiment, with a section ``ensemble``.
        run_dir: Folder of the run.

    Returns:
        The metrics on validation; none where its items are trained on.

    Raises:
        ValueError: If a member cannot be loaded or is of other data, a score is not
            finite, or the folder holds a run of another configuration.
    """
    _check_phase('ensemble', 'ensemble', config)
    run_dir, config = Path(run_dir), resolve_paths(config)
    assert config.ensemble is not None
    if config.train.split != 'train' and config.train.refit is None:
        raise ValueError(
            f"'train.refit' needs the folder of an ensemble whose weights were chosen "
            f'on validation, which its members are trained on here (got None with '
            f"'train.split' {config.train.split!r})"
        )
    folders, finished = config.ensemble.members, (run_dir / METRICS).is_file()
    config = with_graph_of(copies(run_dir, config) if finished else folders, config)
    if finished:
        claim(run_dir, config, main=False)
        logger.info('%s: finished before, nothing is done', run_dir)
        for name in changed_members(folders, run_dir):
            logger.warning(
                "%s: '%s' has been trained anew since; choose another folder, or "
                'remove this one, to combine what it is now',
                run_dir,
                name,
            )
        return dict(read_metrics(run_dir)['metrics'])
    accelerator, data, ids = _prepare(config)
    members = load_members(folders, config, data, ids)
    check_members(folders, data)
    found: dict[str, Any] = {'metrics': {}}
    if config.train.refit is None:
        claim(run_dir, config, accelerator.is_main_process)
        found = _choose_weights(config, members, data, accelerator)
    else:
        former = former_run(config, data, ids)
        found['weights'] = chosen_weights(former, folders)
        found['refit'] = validation(former)
        claim(run_dir, config, accelerator.is_main_process)
    if accelerator.is_main_process:
        copy_members(folders, run_dir)
        ids.save(run_dir / IDS)
        found = _summary(config, found, members, data, accelerator)
        checkpoint.save_json(run_dir / METRICS, found)
    accelerator.wait_for_everyone()
    return dict(found['metrics'])


def _choose_weights(
    config: Config,
    members: Mapping[str, Any],
    data: HeteroData,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The weights, and the validation that they were chosen by."""
    assert config.ensemble is not None
    models = ModuleList(members.values())
    with in_words_of(EnsembleConfig, 'ensemble', metric='train.metric'):
        choice = choose_weights(
            members,
            data,
            config.ensemble.grid,
            config.train.metric,
            config.eval.ks,
            Protocol(config.eval.history, config.eval.mask),
            config.eval.batch_size,
            max_len=config.train.max_len,
            shard=_share(models, accelerator),
            progress=accelerator.is_main_process,
        )
    chosen = choice.chosen.to_dict()
    return {
        'metrics': chosen['metrics'],
        'protocol': {key: chosen[key] for key in ('split', 'history', 'mask')},
        'weights': choice.weights,
        'alone': {name: own.metrics for name, own in choice.alone.items()},
        'tried': {
            ', '.join(
                f'{name}={w}' for name, w in zip(members, weights, strict=True)
            ): v
            for weights, v in choice.tried.items()
        },
        'seconds': chosen['seconds'],
    }


def _summary(
    config: Config,
    found: Mapping[str, Any],
    members: Mapping[str, Any],
    data: HeteroData,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The content of ``metrics.json`` of an ensemble."""
    from hellm_pyg.training.record import commit, peak_memory, versions

    assert config.ensemble is not None
    own = {}
    for name, folder in config.ensemble.members.items():
        metrics = read_metrics(Path(folder))
        own[name] = {
            'metrics': found.get('alone', {}).get(name, {}),
            'parameters': sum(p.numel() for p in members[name].parameters()),
            'trained_parameters': metrics['settings'].get('trained_parameters', 0),
            'seconds': metrics.get('seconds', 0.0),
        }
    sections = to_dict(config)
    return {
        **{key: value for key, value in found.items() if key != 'alone'},
        'selection': config.train.metric,
        'members': own,
        'seconds': found.get('seconds', 0.0),
        'peak_memory_bytes': peak_memory(accelerator.device),
        'device': str(accelerator.device),
        'threads': torch.get_num_threads(),
        'parameters': sum(one['parameters'] for one in own.values()),
        'seed': config.train.seed,
        'versions': versions(),
        'commit': commit(),
        'split_fingerprint': data.split_fingerprint,
        'settings': {
            **{key: sections[key] for key in ('ensemble', 'eval')},
            'train': {k: sections['train'][k] for k in ('max_len', 'metric', 'refit')},
            'data': data.fingerprint,
            'class': 'Ensemble',
            'trained_parameters': sum(m['trained_parameters'] for m in own.values()),
            'processes': accelerator.num_processes,
        },
    }


def _check_phase(command: str, section: str, config: Config) -> None:
    given = {
        'model': config.model.get('name') if config.model else None,
        'llm': config.llm and config.llm.name,
        'ensemble': config.ensemble and list(config.ensemble.members),
    }
    if [name for name in given if getattr(config, name)] != [section]:
        others = ', '.join(
            f"'{name}: {{}}'" if name == 'model' else f"'{name}: null'"
            for name in given
            if name != section
        )
        values = ', '.join(f'{name}={value}' for name, value in given.items())
        raise ValueError(
            f"'{command}' needs a recipe with a section '{section}', {others} (got "
            f'{values})'
        )


def _prepare(config: Config) -> tuple[Accelerator, HeteroData, IdMap]:
    """The processes, and what they train on, which the first of them prepares."""
    from hellm_pyg.training.processes import main_first, make_accelerator

    accelerator = make_accelerator()
    with main_first(accelerator):
        data, ids = build_data(config.data)
    seed_everything(config.train.seed)
    return accelerator, training_data(config, data), ids


def _train(
    config: Config,
    run_dir: Path,
    model: Any,
    data: HeteroData,
    ids: IdMap,
    accelerator: Accelerator,
) -> dict[str, float]:
    from hellm_pyg.training import Trainer

    former = config.train.refit and former_run(config, data, ids)
    loader = build_loader(config, data, model)
    if loader is not None:
        if is_without_state(run_dir):
            check_unchanged(run_dir, data)
            logger.info('%s: finished before, nothing is done', run_dir)
            return dict(read_metrics(run_dir)['metrics'])
        settings = {'model': config.model, 'llm': to_dict(config)['llm']}
        if former:
            settings['refit'] = validation(former)
        with in_words_of(TrainConfig, 'train'):
            trainer = Trainer(
                model,
                data,
                loader,
                config.train,
                run_dir,
                config.eval,
                ids,
                settings,
                accelerator=accelerator,
                last_epoch=chosen_epochs(former) if former else None,
            )
        return trainer.fit()
    model.fit(data)
    found: dict[str, Any] = {'metrics': {}}
    if config.train.split == 'train':
        found = _evaluate(config, model, data, 'val', accelerator).to_dict()
    if former:
        found['refit'] = validation(former)
    found['split_fingerprint'] = data.split_fingerprint
    if accelerator.is_main_process:
        checkpoint.save_tensors(run_dir / WEIGHTS, model.state_dict())
        checkpoint.save_json(run_dir / METRICS, found)
        ids.save(run_dir / IDS)
    accelerator.wait_for_everyone()
    return found['metrics']


def _evaluate(
    config: Config, model: Any, data: HeteroData, split: Any, accelerator: Accelerator
) -> Evaluation:
    """Ranks the users; processes share them, unless the model is one that counts."""
    protocol = Protocol(config.eval.history, config.eval.mask)
    return evaluate(
        model,
        data,
        split,
        config.eval.ks,
        protocol,
        config.eval.batch_size,
        max_len=config.train.max_len,
        shard=_share(model, accelerator),
        progress=accelerator.is_main_process,
    )


def _share(model: torch.nn.Module, accelerator: Accelerator) -> tuple[int, int]:
    """Moves a model to its device; the share of users that this process ranks."""
    if next(model.parameters(), None) is None:
        return 0, 1
    model.to(accelerator.device)
    return accelerator.process_index, accelerator.num_processes


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
    check_finished(run_dir)
    config = load_run_config(run_dir / CONFIG, overrides)
    data, ids = build_data(config.data)
    check_data(run_dir, data, ids)
    model = load_model(run_dir, config, data, ids)
    return Run(run_dir, config, data, ids, model.eval())


def evaluate_run(
    run_dir: str | Path, split: str = 'test', overrides: Sequence[str] = ()
) -> Evaluation:
    """Ranks every user's held-out item and keeps the result with the run.

    Metrics go to ``evaluation.json`` under the split and the protocol, ranks to
    ``ranks-<split>-<history>-<mask>.safetensors``. Only the section ``eval`` of the
    configuration may be another one for that: the result of other changes, as of
    ``data.sample``, is returned and not kept.

    Args:
        run_dir: Folder of a finished run.
        split: ``'val'`` or ``'test'``.
        overrides: Changes of the configuration, as ``eval.mask=none``.

    Raises:
        ValueError: See :func:`load_run`, and if the items of the split were trained on,
            or the interactions or features have changed since the training.
    """
    from hellm_pyg.training.processes import main_first, make_accelerator

    run_dir = Path(run_dir)
    check_finished(run_dir)
    config = load_run_config(run_dir / CONFIG)
    if split in TRAINED_ON[config.train.split]:
        raise ValueError(
            f"'split' needs items that were not trained on (got {split!r} for "
            f"'{run_dir}', which has train.split={config.train.split!r})"
        )
    try:  # the overrides may be about what is held out
        check_held_out(config, load_run_config(run_dir / CONFIG, overrides))
    except ValueError as error:
        raise ValueError(f"'{run_dir}' cannot be evaluated: {error}") from error
    accelerator = make_accelerator()
    with main_first(accelerator):
        run = load_run(run_dir, overrides)
    check_unchanged(run_dir, run.data)
    result = _evaluate(run.config, run.model, run.data, split, accelerator)
    changed = [
        key
        for key in differing(config, run.config)
        if not key.startswith(('eval.', *FILES))
    ]
    if changed:
        logger.warning(
            "%s: the result is not kept, as '%s' is not that of the run",
            run_dir,
            "', '".join(changed),
        )
    elif accelerator.is_main_process:
        _keep(run_dir, split, result)
    accelerator.wait_for_everyone()
    return result


def _keep(folder: Path, split: str, result: Evaluation) -> None:
    path = folder / RESULTS
    results = checkpoint.load_json(path, dict) if path.is_file() else {}
    results[f'{split}, {result.protocol}'] = result.to_dict()
    checkpoint.save_json(path, results)
    name = f'ranks-{split}-{result.protocol.history}-{result.protocol.mask}.safetensors'
    ranks = {'rank': result.rank, 'user': result.user}
    checkpoint.save_tensors(folder / name, ranks)
