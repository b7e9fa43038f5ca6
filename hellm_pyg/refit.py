"""What validation chose for a run, taken over where its items are trained on, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_geometric.data import HeteroData

from hellm_pyg import checkpoint
from hellm_pyg.assembly import check_catalogue
from hellm_pyg.config import Config, load_run_config, to_dict
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.held_out import SPLIT_KEYS
from hellm_pyg.run_folder import (
    CONFIG,
    KNN_KEYS,
    METRICS,
    check_finished,
    check_unchanged,
    copies,
    read_metrics,
)

# What a second training may change: nothing that validation could have chosen.
FREE = ('split', 'refit', 'seed', 'save_minutes')


def former_run(config: Config, data: HeteroData, ids: IdMap) -> Path:
    """The folder ``train.refit``, which needs to be of a run that fits.

    Args:
        config: The second training.
        data: Its data.
        ids: Their id map.

    Raises:
        ValueError: If the former run is not finished, was not chosen by validation, or
            has other settings or data.
    """
    folder = Path(config.train.refit or '')
    if config.train.split == 'train':
        raise ValueError(
            f"'train.refit' needs 'train.split' to hold the validation items, "
            f"'train+val' or 'all': without them validation chooses anew (got "
            f"'{folder}' with 'train')"
        )
    check_finished(folder, 'train.refit')
    former = load_run_config(folder / CONFIG)
    if former.train.split != 'train':
        raise ValueError(
            f"'train.refit' needs a run in which validation has chosen (got "
            f"'{folder}', which has train.split={former.train.split!r})"
        )
    old, new = _fixed(former), _fixed(config)
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise ValueError(
                f"'train.refit' needs a run of the same settings: '{key}' is "
                f"{old.get(key)!r} in '{folder}' (got {new.get(key)!r})"
            )
    try:
        check_catalogue(folder, ids)
        check_unchanged(folder, data)
    except ValueError as error:
        raise ValueError(
            f"'train.refit' needs a run of the same data: {error}"
        ) from error
    return folder


def chosen_epochs(folder: Path) -> int:
    """Number of epochs after which a run was best on validation."""
    found = checkpoint.load_json(folder / METRICS, {'best_epoch': int})
    return int(found['best_epoch'])


def chosen_weights(folder: Path, members: Mapping[str, str]) -> dict[str, float]:
    """Weights of the members of an ensemble, for those that were trained again.

    Args:
        folder: The former ensemble.
        members: Name to folder of those that were trained a second time.

    Raises:
        ValueError: If a member of the same name is of another model.
    """
    for name, path in copies(folder, load_run_config(folder / CONFIG)).items():
        old, new = (
            _model(load_run_config(Path(p) / CONFIG)) for p in (path, members[name])
        )
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                raise ValueError(
                    f"'train.refit' needs members of the same models: '{key}' of "
                    f"'{name}' is {old.get(key)!r} in '{folder}' (got {new.get(key)!r})"
                )
    kinds = dict.fromkeys(members, int | float)
    weights: dict[str, float] = checkpoint.load_json(
        folder / METRICS, {'weights': kinds}
    )['weights']
    return weights


def _model(config: Config) -> dict[str, Any]:
    fixed = _fixed(config).items()
    return {key: value for key, value in fixed if key.startswith(('model.', 'llm.'))}


def validation(folder: Path) -> dict[str, float]:
    """What a run measured on validation."""
    return dict(read_metrics(folder)['metrics'])


def _fixed(config: Config) -> dict[str, Any]:
    """The choices of data, model and optimisation; where anything lies is free."""
    train = {k: v for k, v in dataclasses.asdict(config.train).items() if k not in FREE}
    values = to_dict(config)
    flat = {f'train.{key}': value for key, value in train.items()}
    keys = (*SPLIT_KEYS, *KNN_KEYS, 'sample')
    flat |= {f'data.{key}': values['data'][key] for key in keys}
    flat['data.features'] = sorted(config.data.features)
    for section in ('model', 'llm', 'ensemble'):
        for key, value in (values[section] or {}).items():
            flat[f'{section}.{key}'] = value
    if config.train.distill is not None:
        flat |= {
            'train.distill.runs': sorted(config.train.distill.runs),
            'train.distill.weight': config.train.distill.weight,
        }
    del flat['train.distill']
    for key in ('llm.tables', 'ensemble.members'):
        if isinstance(names := flat.get(key), Mapping):
            flat[key] = list(names)
    return flat
