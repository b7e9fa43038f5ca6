"""What validation chose for a run, taken over where its items are trained on, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hellm_pyg import checkpoint
from hellm_pyg.config import Config, load_run_config, to_dict
from hellm_pyg.run_folder import (
    CONFIG,
    KNN_KEYS,
    METRICS,
    check_finished,
    read_metrics,
)

# What a second training may change: nothing that validation could have chosen.
FREE = ('split', 'refit', 'seed', 'save_minutes')


def chosen_epochs(config: Config) -> int:
    """Number of epochs after which the run ``train.refit`` was best on validation.

    Args:
        config: The second training.

    Raises:
        ValueError: If the former run is not finished, was not chosen by validation, or
            has other settings.
    """
    found = checkpoint.load_json(_former(config) / METRICS, {'best_epoch': int})
    return int(found['best_epoch'])


def chosen_weights(config: Config) -> dict[str, float]:
    """Weights of the members of the ensemble ``train.refit``.

    Args:
        config: The ensemble of members that were trained a second time.

    Raises:
        ValueError: As of :func:`chosen_epochs`.
    """
    folder, members = _former(config), config.ensemble and config.ensemble.members
    kinds = dict.fromkeys(members or {}, int | float)
    weights: dict[str, float] = checkpoint.load_json(
        folder / METRICS, {'weights': kinds}
    )['weights']
    return weights


def validation(config: Config) -> dict[str, float]:
    """What the run ``train.refit`` measured on validation."""
    return dict(read_metrics(_former(config))['metrics'])


def _former(config: Config) -> Path:
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
    return folder


def _fixed(config: Config) -> dict[str, Any]:
    """The choices of model and optimisation; where tables and members lie is free."""
    train = {k: v for k, v in dataclasses.asdict(config.train).items() if k not in FREE}
    values = to_dict(config)
    flat = {f'train.{key}': value for key, value in train.items()}
    flat |= {f'data.{key}': values['data'][key] for key in (*KNN_KEYS, 'sample')}
    for section in ('model', 'llm', 'ensemble'):
        for key, value in (values[section] or {}).items():
            flat[f'{section}.{key}'] = value
    for key in ('llm.tables', 'ensemble.members'):
        if isinstance(names := flat.get(key), Mapping):
            flat[key] = list(names)
    return flat
