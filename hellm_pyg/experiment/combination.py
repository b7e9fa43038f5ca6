"""Finished runs, combined to one whose weights validation chooses."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import ModuleList
from torch_geometric.data import HeteroData

from hellm_pyg import checkpoint
from hellm_pyg.assembly import resolve_paths
from hellm_pyg.config import Config, EnsembleConfig, to_dict
from hellm_pyg.evaluation import Protocol, choose_weights
from hellm_pyg.experiment.preparation import check_phase, own_share, prepare
from hellm_pyg.keys import in_words_of
from hellm_pyg.refit import chosen_weights, former_run, validation
from hellm_pyg.run_folder import (
    IDS,
    METRICS,
    changed_members,
    check_config,
    check_members,
    claim,
    copies,
    copy_members,
    load_members,
    read_metrics,
    with_graph_of,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


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
            finite, the folder holds a run of another configuration, or another
            process writes to it.
    """
    check_phase('ensemble', 'ensemble', config)
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
        check_config(run_dir, config)
        logger.info('%s: finished before, nothing is done', run_dir)
        for name in changed_members(folders, run_dir):
            logger.warning(
                "%s: '%s' has been trained anew since; choose another folder, or "
                'remove this one, to combine what it is now',
                run_dir,
                name,
            )
        return dict(read_metrics(run_dir)['metrics'])
    accelerator, data, ids = prepare(config)
    members = load_members(folders, config, data, ids)
    check_members(folders, data)
    found: dict[str, Any] = {'metrics': {}}
    if config.train.refit is not None:
        former = former_run(config, data, ids)
        found['weights'] = chosen_weights(former, folders)
        found['refit'] = validation(former)
    with claim(run_dir, config, accelerator.is_main_process):
        if config.train.refit is None:
            found = _choose_weights(config, members, data, accelerator)
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
            shard=own_share(models, accelerator),
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
