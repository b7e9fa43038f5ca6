"""A prepared folder: tables, features, the graph, the card and the recipe's part."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch_geometric.data import HeteroData

from hellm_pyg.assembly import build_data
from hellm_pyg.checkpoint import atomic_folder, load_tensors
from hellm_pyg.config import PREPARED, DataConfig, save_data_config
from hellm_pyg.datasets.card import write_card
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.datasets.provenance import Provenance

CACHE, FEATURES = 'cache', 'features'
TABLES = ('interactions.parquet', 'items.parquet')
CARDS = ('data_card.md', 'data_card.json')
OWN = {PREPARED, CACHE, FEATURES, *TABLES, *CARDS}


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready to be trained on.

    Args:
        folder: The folder; recipes read it by ``dataset=FOLDER``.
        data: The graph, split.
        ids: Original ids.
        notes: What was decided on the way: guessed columns, what was left out.
    """

    folder: Path
    data: HeteroData
    ids: IdMap
    notes: list[str] = field(default_factory=list)

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that items have features of."""
        names = self.data['item'].keys()
        return [n.removeprefix('x_') for n in names if n.startswith('x_')]


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write in, which takes the place of ``out`` once it is complete.

    Args:
        out: A new or empty folder, or a prepared one, which is replaced.

    Raises:
        ValueError: If ``out`` holds what was not written here.
    """
    path = Path(out).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"'out' needs to be a folder (got the file '{out}')")
    if path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(
            f"'out' needs a folder of its own (got '{out}', where you are): give "
            f"another, such as '{Path(out) / 'prepared'}'"
        )
    if path.is_dir():
        foreign = sorted(
            entry.name for entry in path.iterdir() if entry.name not in OWN
        )
        complete = (path / PREPARED).is_file()
        if foreign or (any(path.iterdir()) and not complete):
            held = foreign[0] if foreign else next(path.iterdir()).name
            raise ValueError(
                f"'out' needs a new folder, or a prepared one, which is replaced (got "
                f"'{out}', which holds '{held}'): give another, such as "
                f"'{Path(out) / 'prepared'}'"
            )
    with atomic_folder(path) as temporary:
        yield temporary


def refuse_one_date(val_from: object, test_from: object) -> None:
    """Refuses a hold-out by date that lacks one of its dates.

    Raises:
        ValueError: If one is given without the other.
    """
    if (val_from is None) != (test_from is None):
        raise ValueError(
            f"'val_from' and 'test_from' make a hold-out by date together (got "
            f'{val_from!r} and {test_from!r}): give both, or neither'
        )


def complete(
    folder: Path, config: DataConfig, provenance: Provenance
) -> tuple[HeteroData, IdMap, list[str]]:
    """Builds the graph of a folder's tables; writes the card and the recipe's part.

    Where few items have features, each has fewer neighbours.

    Args:
        folder: Where tables and features lie.
        config: How they are read, with paths relative to the folder.
        provenance: Where they come from.

    Returns:
        The graph, its ids, and what was changed in ``config``, a sentence each.

    Raises:
        ValueError: If the tables cannot be used, or no target can be held out.
    """
    config, notes = _within_reach(folder, dataclasses.replace(config, root=CACHE))
    encoders = provenance.encoders
    provenance = dataclasses.replace(
        provenance,
        encoders={name: encoders[name] for name in encoders if name in config.features},
        notes=[*provenance.notes, *(f'{note}.' for note in notes)],
    )
    with _quiet():  # what there is to say was said when the sources were read
        data, ids = build_data(_within(folder, config))
    if not (data['user'].test_item >= 0).any():
        raise ValueError(
            f"'interactions' leave nothing to test on: no user has three of them, with "
            f'different items (got {ids.num_users} users and {ids.num_items} items)'
        )
    write_card(folder, data, provenance)
    save_data_config(config, folder)
    return data, ids, notes


def _within_reach(folder: Path, config: DataConfig) -> tuple[DataConfig, list[str]]:
    """Fewer neighbours, and no features of a single item, where items are few."""
    features, knn, notes = dict(config.features), config.knn, []
    for name, path in config.features.items():
        x = load_tensors(folder / path)[name]
        present = int((~(x.isnan() | (x == 0)).all(dim=-1)).sum())
        if present < 2:
            del features[name]
            for ending in ('.safetensors', '.json'):
                (folder / path).with_suffix(ending).unlink(missing_ok=True)
            notes.append(
                f"'{name}' features are left out: only {present} item has them, which "
                f'leaves it without neighbours'
            )
        elif present <= knn:
            knn = present - 1
            notes.append(
                f"only {present} items have '{name}' features: 'data.knn' is at most "
                f'{knn}'
            )
    return dataclasses.replace(config, features=features, knn=knn), notes


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger('hellm_pyg.datasets')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _within(folder: Path, config: DataConfig) -> DataConfig:
    return dataclasses.replace(
        config,
        root=str(folder / config.root),
        interactions=str(folder / config.interactions),
        items=None if config.items is None else str(folder / config.items),
        features={name: str(folder / path) for name, path in config.features.items()},
    )


def split_line(config: DataConfig) -> str:
    """A line about the split for the card, ``''`` for leave-one-out."""
    if config.test_from is None:
        return ''
    return (
        f'by date: training before {config.val_from}, validation from there on, test '
        f'from {config.test_from} on'
    )
