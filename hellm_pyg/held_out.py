"""What a model may not have been trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hellm_pyg.checkpoint import load_json
from hellm_pyg.config import Config, load_run_config

# What is not held out any more from a model that is trained on so much.
TRAINED_ON = {'train': (), 'train+val': ('val',), 'all': ('val', 'test')}
# Of the data, what decides on the split.
SPLIT_KEYS = ('val_from', 'test_from', 'drop_last')


def check_held_out(trained: Config, config: Config) -> None:
    """Refuses what was trained on items that are held out.

    Args:
        trained: Configuration of the model, or of a table that it reads.
        config: What it is used in.

    Raises:
        ValueError: If the data are split in another way, or less is held out of the
            training.
    """
    for key in SPLIT_KEYS:
        old, new = getattr(trained.data, key), getattr(config.data, key)
        if old != new:
            raise ValueError(
                f"it was trained with 'data.{key}' {old!r} (got {new!r} here), hence "
                f'perhaps on items that are held out here'
            )
    _check_split(trained.train.split, config.train.split)


def _check_split(old: str, new: str) -> None:
    if not set(TRAINED_ON[old]) <= set(TRAINED_ON[new]):
        raise ValueError(
            f"it was trained with 'train.split' {old!r} (got {new!r} here), hence on "
            f'items that are held out here'
        )


def check_tables(tables: Mapping[str, str], config: Config) -> None:
    """Refuses tables of phase 1 that know what a run holds out.

    Args:
        tables: Name to source, as in ``llm.tables``; only the folders of runs, which
            say how they were trained, are looked into.
        config: The run that reads them.

    Raises:
        ValueError: As of :func:`check_held_out`.
    """
    for name, source in tables.items():
        path, metrics = (Path(source) / n for n in ('config.yaml', 'metrics.json'))
        try:
            if path.is_file():
                check_held_out(load_run_config(path), config)
            elif metrics.is_file():  # of a Trainer that was called by itself
                train = load_json(metrics, dict).get('settings', {}).get('train', {})
                _check_split(train.get('split', 'train'), config.train.split)
        except ValueError as error:
            raise ValueError(f"'llm.tables.{name}' cannot be read: {error}") from error
