"""A model taken out of its run folder, and its ranks of held-out items kept there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from filelock import FileLock
from torch_geometric.data import HeteroData

from hellm_pyg import checkpoint
from hellm_pyg.assembly import build_data
from hellm_pyg.config import Config, load_run_config
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.evaluation import Evaluation, Protocol, evaluate_protocols
from hellm_pyg.experiment.preparation import own_share
from hellm_pyg.held_out import TRAINED_ON, check_held_out
from hellm_pyg.run_folder import (
    CONFIG,
    FILES,
    check_data,
    check_finished,
    check_unchanged,
    differing,
    load_model,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

RESULTS, LOCK = 'evaluation.json', '.evaluation.lock'

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """A trained model beside everything that it was trained with."""

    folder: Path
    config: Config
    data: HeteroData
    ids: IdMap
    model: Any


def load_run(run_dir: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Loads a trained model with its data.

    Args:
        run_dir: Folder of a finished run.
        overrides: Changes of the configuration, as ``dataset=FOLDER`` for a prepared
            folder that has moved.

    Raises:
        ValueError: If there is no finished run, or the data are not those that
            the model was trained on.
    """
    run_dir = Path(run_dir)
    check_finished(run_dir)
    config = load_run_config(run_dir / CONFIG, overrides)
    try:
        data, ids = build_data(config.data)
    except ValueError as error:
        if Path(config.data.interactions).is_file():
            raise
        raise ValueError(
            f"{error}: where the data have moved, give 'dataset=FOLDER', the folder "
            f"that 'hellm prepare' has made, or 'data.interactions=FILE'"
        ) from error
    check_data(run_dir, data, ids)
    model = load_model(run_dir, config, data, ids)
    return Run(run_dir, config, data, ids, model.eval())


def evaluate_run(
    run_dir: str | Path, split: str = 'test', overrides: Sequence[str] = ()
) -> Evaluation:
    """Ranks every user's held-out item and keeps the result with the run.

    Metrics go to ``evaluation.json`` under the split and the protocol, ranks to
    ``ranks-<split>-<history>-<mask>.safetensors``; a warning says if they cannot be
    written. Only the section ``eval`` of the
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
    (result,) = _evaluate(run_dir, split, overrides)
    return result


def evaluate_run_protocols(
    run_dir: str | Path,
    protocols: Sequence[Protocol],
    split: str = 'test',
    overrides: Sequence[str] = (),
) -> list[Evaluation]:
    """Does what :func:`evaluate_run` does, under several protocols at once.

    The run is loaded once, and protocols of one history are ranked from the same
    scores.

    Args:
        run_dir: Folder of a finished run.
        protocols: What is read and what is ranked, instead of the configuration's.
        split: ``'val'`` or ``'test'``.
        overrides: Changes of the configuration.

    Returns:
        The results in the order of the protocols.

    Raises:
        ValueError: As of :func:`evaluate_run`.
    """
    return _evaluate(run_dir, split, overrides, protocols)


def _evaluate(
    run_dir: str | Path,
    split: str,
    overrides: Sequence[str],
    protocols: Sequence[Protocol] | None = None,
) -> list[Evaluation]:
    """Ranks under the protocols, or the configuration's, and keeps the results."""
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
    if protocols is None:
        protocols = [protocol_of(run.config)]
    results = rank_users(run.config, run.model, run.data, split, protocols, accelerator)
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
        try:
            with FileLock(run_dir / LOCK):  # of evaluations only
                for result in results:
                    _keep(run_dir, split, result)
        except (OSError, ValueError) as error:  # the ranking may have taken long
            logger.warning('%s: the result is not kept: %s', run_dir, error)
    accelerator.wait_for_everyone()
    return results


def protocol_of(config: Config) -> Protocol:
    """What the section ``eval`` reads and ranks."""
    return Protocol(config.eval.history, config.eval.mask)


def rank_users(
    config: Config,
    model: Any,
    data: HeteroData,
    split: Any,
    protocols: Sequence[Protocol],
    accelerator: Accelerator,
) -> list[Evaluation]:
    """Ranks the users; processes share them, unless the model is one that counts."""
    return evaluate_protocols(
        model,
        data,
        protocols,
        split,
        ks=config.eval.ks,
        batch_size=config.eval.batch_size,
        max_len=config.train.max_len,
        shard=own_share(model, accelerator),
        progress=accelerator.is_main_process,
    )


def _keep(folder: Path, split: str, result: Evaluation) -> None:
    """Writes metrics and ranks; metrics of the same ranks at other cut-offs stay."""
    path, key = folder / RESULTS, f'{split}, {result.protocol}'
    results = checkpoint.load_json(path, dict) if path.is_file() else {}
    name = f'ranks-{split}-{result.protocol.history}-{result.protocol.mask}.safetensors'
    ranks = {'rank': result.rank, 'user': result.user}
    kept, own = results.get(key, {}), result.to_dict()
    if kept and (folder / name).is_file():
        former = checkpoint.load_tensors(folder / name)
        if all(torch.equal(former[part], ranks[part]) for part in ranks):
            own['metrics'] = {**kept['metrics'], **own['metrics']}
    checkpoint.save_tensors(folder / name, ranks)
    checkpoint.save_json(path, {**results, key: own})


def forget_results(folder: Path) -> None:
    """Removes the results of a model that another one replaces."""
    for path in (folder / RESULTS, *folder.glob('ranks-*.safetensors')):
        path.unlink(missing_ok=True)
