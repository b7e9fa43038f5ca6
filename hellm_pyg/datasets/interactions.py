"""Interaction files in a user's own ids as a graph."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import save_json
from hellm_pyg.data.features import missing_rows
from hellm_pyg.datasets import features as feature_files
from hellm_pyg.datasets.cache import content_hash, content_key
from hellm_pyg.datasets.cached_graph import CachedGraph
from hellm_pyg.datasets.graph import interaction_graph
from hellm_pyg.datasets.ids import Id, IdMap
from hellm_pyg.datasets.item_table import ItemTable, read_items, reorder
from hellm_pyg.datasets.log import InteractionLog, LogReport, read_log
from hellm_pyg.datasets.rows import BadRows
from hellm_pyg.datasets.tables import (
    SEQUENCES,
    TABLES,
    Source,
    as_source,
    checked_file,
    ending,
    printable,
)
from hellm_pyg.datasets.times import TimeUnit

logger = logging.getLogger(__name__)

# Part of the cache's key: raised whenever the same files give other data.
FORMAT = 2
GENERIC_NAMES = {'sequences', 'interactions', 'ratings', 'reviews', 'data'}


class InteractionFiles(CachedGraph):
    r"""Users, items and their interactions from tables, in ids of any kind.

    The result is a :class:`~torch_geometric.data.HeteroData` with *all*
    interactions, sorted by user, then time (equal times keep the order of the
    file); :class:`~hellm_pyg.transforms.LeaveOneOut` or
    :class:`~hellm_pyg.transforms.HoldOutByDate` splits it. Internal ids follow the
    original ones in ascending order: numeric order if all are integers, otherwise
    the order of strings. :attr:`ids` translates. A column of text holds integers if
    each of its ids is written as one; a single other one (:obj:`A7`, or :obj:`012`
    for its zero) makes all of them text, :obj:`12` included. Blanks around an id are no
    part of it, and equal letters are equal in every form of Unicode.

    The processed data lie in :obj:`root`, in a folder named by the SHA-256 of the
    contents of all files, the arguments and :obj:`pre_transform`: other input
    gives another folder, and a folder appears only when it is complete.

    Interactions come as sequence text, :obj:`user item item ...`, oldest first
    (:obj:`.txt`), as a table (:obj:`.csv`, :obj:`.tsv`, :obj:`.parquet`,
    :obj:`.jsonl`), each also with a further :obj:`.gz`, or as a frame of pandas,
    polars, pyarrow or whatever else has ``__arrow_c_stream__``. Of repeated
    interactions of a user with an item the first stays.

    Dates, and numbers that can only be seconds, milli-, micro- or nanoseconds since
    1970, become seconds since 1970 (UTC; :obj:`data.time_unit` is :obj:`'s'`); other
    numbers stay as they are (:obj:`'number'`); without times, the position in the
    file, or in the user's sequence, is the time (:obj:`'position'`).

    :attr:`report` tells how the input was read and what was dropped from it.

    Args:
        root: Folder of the cache.
        interactions: File or frame of the interactions.
        user: Column of the user ids (tables); if :obj:`None`, :obj:`'user_id'`, or
            the only column whose name says that it is meant, which is logged.
        item: Column of the item ids, likewise (tables).
        time: Column of the times (tables).
        rating: Column of the ratings, read for :obj:`min_rating` (tables).
        min_rating: Interactions rated below are dropped.
        min_count: Users and items with fewer interactions are dropped until
            none is left (k-core).
        items: Item table with an id column and free columns, which become
            :obj:`data['item'].table`. Rows of items without interactions are
            left out; items without a row have empty columns. A file or frame.
        item_id: Id column of :obj:`items`.
        title: Title column of :obj:`items`; the default may be absent. It becomes
            :obj:`data['item'].title`, in templates :obj:`{title}`, and is no longer
            part of the table.
        features: Modality to file (:obj:`.npy`, :obj:`.safetensors`) of a matrix
            whose rows follow :obj:`items`, or, without an item table, the
            distinct item ids of :obj:`interactions` in ascending order. Rows of
            NaN, or not in a tensor named :obj:`mask`, are missing.
        name: Name of the data; the file's, or its folder's, if :obj:`None`.
        transform: Applied at every access.
        pre_transform: Applied before saving.
        force_reload: Whether to process again.
        min_length: Users with fewer interactions are dropped, together with
            :obj:`min_count` until all have enough.
        time_unit: Unit of times that are numbers, :obj:`'s'`, :obj:`'ms'`,
            :obj:`'us'`, :obj:`'ns'` since 1970 or just :obj:`'number'`; if
            :obj:`None`, what their size says.
        bad_rows: Whether to :obj:`'refuse'` or to :obj:`'drop'` interactions without
            an id, and those with a time or rating that cannot be one: unreadable
            ones, times of 1970 and before, times in the future.

    Raises:
        ValueError: On input that cannot be used; names file, column and row.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        interactions: str | os.PathLike[str] | Any,
        user: str | None = None,
        item: str | None = None,
        time: str | None = None,
        rating: str | None = None,
        min_rating: float | None = None,
        min_count: int = 0,
        items: str | os.PathLike[str] | Any | None = None,
        item_id: str = 'item_id',
        title: str | None = 'title',
        features: Mapping[str, str | os.PathLike[str]] | None = None,
        name: str | None = None,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        *,
        min_length: int = 0,
        time_unit: TimeUnit | None = None,
        bad_rows: BadRows = 'refuse',
    ) -> None:
        for key, value in (('min_count', min_count), ('min_length', min_length)):
            if value < 0:
                raise ValueError(f"'{key}' needs to be at least 0 (got {value})")
        if min_rating is not None and rating is None:
            raise ValueError(
                f"'min_rating' needs the column of the ratings as 'rating' (got "
                f'min_rating={min_rating}, rating=None)'
            )
        self.columns = {'user': user, 'item': item, 'time': time}
        self.columns['rating'] = None if min_rating is None else rating
        self.min_rating = min_rating
        self.min_count = min_count
        self.min_length = min_length
        self.time_unit = time_unit
        self.bad_rows = bad_rows
        self.item_id = item_id
        self.title = title
        self.interactions = as_source(
            interactions, 'interactions', [SEQUENCES, *TABLES]
        )
        self.items = None if items is None else as_source(items, 'items')
        if not isinstance(features, Mapping | None):
            raise ValueError(
                f"'features' needs to map modalities to files, as "
                f"{{'text': 'text.npy'}} (got {features!r})"
            )
        self.features = {
            _modality(modality): _feature_file(path)
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
        return [str(path) for path in self._inputs.values() if isinstance(path, Path)]

    @property
    def _inputs(self) -> dict[str, Source]:
        """Argument to file or frame."""
        items = {} if self.items is None else {'items': self.items}
        features = {f'features.{name}': path for name, path in self.features.items()}
        return {'interactions': self.interactions, **items, **features}

    def process(self) -> None:
        """Reads, checks and filters the input, and saves the graph."""
        # The log is gone when the graph is transformed: together they are large.
        data, ids, report = self._read()
        if self.pre_transform is not None:
            data = self.pre_transform(data)
        save_json(self.processed_paths[2], report)
        ids.save(self.processed_paths[1])
        self.save([data], self.processed_paths[0])

    def _read(self) -> tuple[HeteroData, IdMap, dict[str, Any]]:
        raw, how = read_log(
            self.interactions,
            **self.columns,
            time_unit=self.time_unit,
            bad_rows=self.bad_rows,
        )
        log, dropped = self._filtered(raw)
        table, rows = self._item_rows(raw, log)
        titles = None
        if table is not None and table.titles is not None:
            titles = reorder(table.titles, rows)
        ids = IdMap(log.users, log.items, titles)
        features = self._read_features(raw, table, rows)
        data = interaction_graph(
            ids,
            torch.from_numpy(np.stack([log.user, log.item])),
            torch.from_numpy(log.whole_time),
            features,
            {
                name: reorder(values, rows)
                for name, values in (table.columns if table else {}).items()
            },
            self.name,
        )
        data.time_unit = how.time_unit
        report = self._report(raw, how, log, dropped)
        if table is not None:
            found = int((rows >= 0).sum())
            report['item_table'] = {
                'rows': len(table.ids),
                'items without a row': len(rows) - found,
                'rows without interactions': len(table.ids) - found,
            }
        for modality, x in features.items():
            missing = int(missing_rows(x).sum())
            report['features'][modality] = {
                'width': x.size(1),
                'items without': missing,
            }
        return data, ids, report

    def _filtered(self, raw: InteractionLog) -> tuple[InteractionLog, dict[str, int]]:
        log = raw
        if self.min_rating is not None and log.rating is not None:
            log = log.take(log.rating >= self.min_rating)
        distinct = log.chronological().first_of_pairs()
        if len(distinct) < len(log):
            logger.warning(
                '%s: %d of %d interactions repeat a user and an item and are dropped',
                self.interactions,
                len(log) - len(distinct),
                len(log),
            )
        kept = distinct.core(self.min_count, self.min_length).compact()
        if len(kept) == 0:
            raise ValueError(
                f"'min_rating', 'min_count' and 'min_length' leave no interaction of "
                f"'{self.interactions}' (got min_rating={self.min_rating}, "
                f'min_count={self.min_count}, min_length={self.min_length} for '
                f'{len(raw)} interactions); lower them'
            )
        logger.info(
            '%s: %d users, %d items, %d of %d interactions',
            self.interactions,
            len(kept.users),
            len(kept.items),
            len(kept),
            len(raw),
        )
        # Both count at once: one may lead to the other.
        bounds = {'min_count': self.min_count, 'min_length': self.min_length}
        bound = ' or '.join(n for n in bounds if bounds[n]) or 'min_count'
        return kept, {
            'below min_rating': len(raw) - len(log),
            'repeated': len(log) - len(distinct),
            f'below {bound}': len(distinct) - len(kept),
        }

    def _report(
        self,
        raw: InteractionLog,
        how: LogReport,
        log: InteractionLog,
        dropped: dict[str, int],
    ) -> dict[str, Any]:
        """What was read, what was dropped and why, in plain values."""
        dropped = {name: count for name, count in dropped.items() if count}
        return {
            'name': self.name,
            'users': len(log.users),
            'items': len(log.items),
            'interactions': len(log),
            'dropped': how.dropped | dropped,
            'read': {
                'users': len(raw.users),
                'items': len(raw.items),
                'interactions': how.rows,
            },
            'columns': how.columns,
            'guessed': how.guessed,
            'time': {
                'unit': how.time_unit,
                'read_as': how.time_read_as,
                'first': int(log.whole_time.min()),
                'last': int(log.whole_time.max()),
            },
            'min_count': self.min_count,
            'min_length': self.min_length,
            'min_rating': self.min_rating,
            'files': [
                {
                    'argument': argument,
                    'file': _file_name(source),
                    'sha256': content_hash(source),
                }
                for argument, source in self._inputs.items()
            ],
            'item_table': None,
            'features': {},
        }

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
        items = table.ids if table else raw.items
        index = torch.from_numpy(rows)
        out = {}
        for modality, path in self.features.items():
            x = feature_files.read_features(path, modality, items, rows_of)[index]
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
            'inputs': {
                argument: ending(source) if isinstance(source, Path) else 'frame'
                for argument, source in self._inputs.items()
            },
            **self.columns,
            'item_id': self.item_id,
            'title': self.title,
            'min_rating': self.min_rating,
            'min_count': self.min_count,
            'min_length': self.min_length,
            'time_unit': self.time_unit,
            'bad_rows': self.bad_rows,
            'name': self.name,
            'pre_transform': self.pre_transform,
        }
        return content_key(list(self._inputs.values()), arguments)


def _modality(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(
            f"'features' needs modality names of letters, digits and '_' (got {name!r})"
        )
    return name


def _feature_file(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"'features' needs files, {', '.join(feature_files.ENDINGS)} (got a "
            f'{type(path).__name__}): save it as one'
        )
    return checked_file(Path(path), 'features', feature_files.ENDINGS, compressed=False)


def _file_name(source: Source) -> str | None:
    return printable(source.name) if isinstance(source, Path) else None


def _name(path: Source) -> str:
    if not isinstance(path, Path):
        return 'interactions'
    stem = path.name.split('.')[0]
    return path.parent.name if stem in GENERIC_NAMES and path.parent.name else stem


def _some(ids: list[Id], count: int = 3) -> str:
    dots = ', ...' if len(ids) > count else ''
    return ', '.join(map(repr, ids[:count])) + dots
