"""Interaction files in a user's own ids as a graph."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.datasets import features as feature_files
from hellm_pyg.datasets.cache import content_key
from hellm_pyg.datasets.cached_graph import CachedGraph
from hellm_pyg.datasets.graph import interaction_graph
from hellm_pyg.datasets.ids import Id, IdMap
from hellm_pyg.datasets.item_table import ItemTable, read_items, reorder
from hellm_pyg.datasets.log import InteractionLog, read_log
from hellm_pyg.datasets.tables import SEQUENCES, TABLES, checked_file, ending

logger = logging.getLogger(__name__)

# Part of the cache's key: raised whenever the same files give other data.
FORMAT = 1
GENERIC_NAMES = {'sequences', 'interactions', 'ratings', 'reviews', 'data'}


class InteractionFiles(CachedGraph):
    r"""Users, items and their interactions from files, in ids of any kind.

    The result is a :class:`~torch_geometric.data.HeteroData` with *all*
    interactions, sorted by user, then time (equal times keep the order of the
    file); :class:`~hellm_pyg.transforms.LeaveOneOut` splits it. Internal ids
    follow the original ones in ascending order: numeric order if all are
    integers, otherwise the order of strings. :attr:`ids` translates.

    The processed data lie in :obj:`root`, in a folder named by the SHA-256 of the
    contents of all files, the arguments and :obj:`pre_transform`: other input
    gives another folder, and a folder appears only when it is complete.

    Interactions come as sequence text, :obj:`user item item ...`, oldest first
    (:obj:`.txt`), or as a table (:obj:`.csv`, :obj:`.tsv`, :obj:`.parquet`,
    :obj:`.jsonl`); each also with a further :obj:`.gz`. Of repeated interactions
    of a user with an item the first stays. Numbers as times keep their unit,
    dates become seconds since 1970 (UTC); without times, the position in the
    file, or in the user's sequence, is the time.

    Args:
        root: Folder of the cache.
        interactions: File of the interactions.
        user: Column of the user ids, :obj:`'user_id'` if :obj:`None` (tables).
        item: Column of the item ids, :obj:`'item_id'` if :obj:`None` (tables).
        time: Column of the times (tables).
        rating: Column of the ratings, read for :obj:`min_rating` (tables).
        min_rating: Interactions rated below are dropped.
        min_count: Users and items with fewer interactions are dropped until
            none is left (k-core).
        items: Item table with an id column and free columns, which become
            :obj:`data['item'].table`. Rows of items without interactions are
            left out; items without a row have empty columns.
        item_id: Id column of :obj:`items`.
        title: Title column of :obj:`items`; the default may be absent.
        features: Modality to file (:obj:`.npy`, :obj:`.safetensors`) of a matrix
            whose rows follow :obj:`items`, or, without an item table, the
            distinct item ids of :obj:`interactions` in ascending order. Rows of
            NaN, or not in a tensor named :obj:`mask`, are missing.
        name: Name of the data; the file's, or its folder's, if :obj:`None`.
        transform: Applied at every access.
        pre_transform: Applied before saving.
        force_reload: Whether to process again.

    Raises:
        ValueError: On input that cannot be used; names file, column and row.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        interactions: str | os.PathLike[str],
        user: str | None = None,
        item: str | None = None,
        time: str | None = None,
        rating: str | None = None,
        min_rating: float | None = None,
        min_count: int = 0,
        items: str | os.PathLike[str] | None = None,
        item_id: str = 'item_id',
        title: str | None = 'title',
        features: Mapping[str, str | os.PathLike[str]] | None = None,
        name: str | None = None,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
    ) -> None:
        if min_count < 0:
            raise ValueError(f"'min_count' needs to be at least 0 (got {min_count})")
        if min_rating is not None and rating is None:
            raise ValueError(
                f"'min_rating' needs the column of the ratings as 'rating' (got "
                f'min_rating={min_rating}, rating=None)'
            )
        self.columns = {'user': user, 'item': item, 'time': time}
        self.columns['rating'] = None if min_rating is None else rating
        self.min_rating = min_rating
        self.min_count = min_count
        self.item_id = item_id
        self.title = title
        self.interactions = checked_file(
            Path(interactions), 'interactions', [SEQUENCES, *TABLES]
        )
        self.items = None
        if items is not None:
            self.items = checked_file(Path(items), 'items', list(TABLES))
        self.features = {
            _modality(modality): checked_file(
                Path(path), 'features', feature_files.ENDINGS, compressed=False
            )
            for modality, path in (features or {}).items()
        }
        self.name = name or _name(self.interactions)
        super().__init__(
            os.fspath(root), transform, pre_transform, None, False, force_reload
        )
        self.load_graph()

    @property
    def raw_file_names(self) -> list[str]:
        """The input files, wherever they lie."""
        return [str(path) for path in self._files]

    @property
    def _files(self) -> list[Path]:
        tables = [self.interactions, *([self.items] if self.items else [])]
        return [*tables, *self.features.values()]

    def process(self) -> None:
        """Reads, checks and filters the files, and saves the graph."""
        raw = read_log(self.interactions, **self.columns)
        log = self._filtered(raw)
        table, rows = self._item_rows(raw, log)
        titles = None
        if table is not None and table.titles is not None:
            titles = reorder(table.titles, rows)
        ids = IdMap(log.users, log.items, titles)
        data = interaction_graph(
            ids,
            torch.from_numpy(np.stack([log.user, log.item])),
            torch.from_numpy(log.whole_time),
            self._read_features(raw, table, rows),
            {
                name: reorder(values, rows)
                for name, values in (table.columns if table else {}).items()
            },
            self.name,
        )
        if self.pre_transform is not None:
            data = self.pre_transform(data)
        ids.save(self.processed_paths[1])
        self.save([data], self.processed_paths[0])

    def _filtered(self, raw: InteractionLog) -> InteractionLog:
        log = raw
        if self.min_rating is not None and log.rating is not None:
            log = log.take(log.rating >= self.min_rating)
        log = log.chronological()
        distinct = log.first_of_pairs()
        if len(distinct) < len(log):
            logger.warning(
                '%s: %d of %d interactions repeat a user and an item and are dropped',
                self.interactions,
                len(log) - len(distinct),
                len(log),
            )
        log = distinct.core(self.min_count).compact()
        if len(log) == 0:
            raise ValueError(
                f"'min_rating' and 'min_count' leave no interaction of "
                f"'{self.interactions}' (got min_rating={self.min_rating}, "
                f'min_count={self.min_count})'
            )
        logger.info(
            '%s: %d users, %d items, %d of %d interactions',
            self.interactions,
            len(log.users),
            len(log.items),
            len(log),
            len(raw),
        )
        return log

    def _item_rows(
        self, raw: InteractionLog, log: InteractionLog
    ) -> tuple[ItemTable | None, NDArray[np.int64]]:
        if self.items is None:
            position = {value: row for row, value in enumerate(raw.items)}
            return None, np.array([position[value] for value in log.items])
        table = read_items(self.items, self.item_id, self.title)
        rows = table.rows(log.items)
        absent = [log.items[i] for i in np.flatnonzero(rows < 0)]
        if len(absent) == len(log.items):
            raise ValueError(
                f"'items' shares no id with 'interactions' (got {_some(table.ids)} in "
                f"column '{self.item_id}' of '{self.items}', {_some(log.items)} in "
                f"'{self.interactions}')"
            )
        if absent:
            logger.warning(
                '%s: %d of %d items have no row and stay without text and features: %s',
                self.items,
                len(absent),
                len(log.items),
                _some(absent),
            )
        unused = len(table.ids) - (rows >= 0).sum()
        if unused:
            logger.warning(
                '%s: %d of %d items are in no interaction that is kept, and left out',
                self.items,
                unused,
                len(table.ids),
            )
        return table, rows

    def _read_features(
        self,
        raw: InteractionLog,
        table: ItemTable | None,
        rows: NDArray[np.int64],
    ) -> dict[str, Tensor]:
        rows_of = (
            f"the items of '{self.items}'"
            if table
            else f"the distinct items of '{self.interactions}' (or give an item table "
            f"as 'items', whose order the rows then follow)"
        )
        num_rows = len(table.ids if table else raw.items)
        index = torch.from_numpy(rows)
        out = {}
        for modality, path in self.features.items():
            x = feature_files.read_features(path, modality, num_rows, rows_of)[index]
            x[index < 0] = torch.nan
            if x.isnan().all():
                raise ValueError(
                    f"'features' of '{modality}' ('{path}') has no row for any item "
                    f"of '{self.interactions}'"
                )
            out[modality] = x
        return out

    def content_key(self) -> str:
        """Hash of the input files and the arguments."""
        arguments = {
            'format': FORMAT,
            'endings': [ending(path) for path in self._files],
            'modalities': list(self.features),
            'items': self.items is not None,
            **self.columns,
            'item_id': self.item_id,
            'title': self.title,
            'min_rating': self.min_rating,
            'min_count': self.min_count,
            'name': self.name,
            'pre_transform': self.pre_transform,
        }
        return content_key(self._files, arguments)


def _modality(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(
            f"'features' needs modality names of letters, digits and '_' (got {name!r})"
        )
    return name


def _name(path: Path) -> str:
    stem = path.name.split('.')[0]
    return path.parent.name if stem in GENERIC_NAMES and path.parent.name else stem


def _some(ids: list[Id], count: int = 3) -> str:
    dots = ', ...' if len(ids) > count else ''
    return ', '.join(map(repr, ids[:count])) + dots
