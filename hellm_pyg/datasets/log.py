"""A log of interactions as arrays, and what is dropped from it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hellm_pyg.datasets.columns import encode_ids, read_numbers
from hellm_pyg.datasets.guess import guess_columns
from hellm_pyg.datasets.ids import Id
from hellm_pyg.datasets.kcore import core_mask
from hellm_pyg.datasets.rows import BadRows, RowCheck
from hellm_pyg.datasets.tables import (
    SEQUENCES,
    Source,
    column_names,
    ending,
    read_sequences,
    read_table,
    require_column,
)
from hellm_pyg.datasets.times import NAMES as UNIT_NAMES
from hellm_pyg.datasets.times import Times, TimeUnit, read_times, whole_times

logger = logging.getLogger(__name__)

REMEDY = "; mend the row, remove it, or leave such rows out with bad_rows='drop'"


@dataclass(frozen=True)
class InteractionLog:
    r"""Interactions with users and items as positions in their id lists.

    Args:
        users: Ids of the users, ascending, of length :math:`U`.
        items: Ids of the items, ascending, of length :math:`I`.
        user: User of each interaction, int64 of shape :math:`[E]`.
        item: Item of each interaction, int64 of shape :math:`[E]`.
        time: Time of each interaction, of any ordered type, :math:`[E]`.
        rating: Rating of each interaction, :math:`[E]`, if there are ratings.
    """

    users: list[Id]
    items: list[Id]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.generic]
    rating: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return self.user.size

    def take(self, index: NDArray[np.generic]) -> InteractionLog:
        """The interactions at positions, or where a mask is true; all ids stay."""
        return replace(
            self,
            user=self.user[index],
            item=self.item[index],
            time=self.time[index],
            rating=None if self.rating is None else self.rating[index],
        )

    def chronological(self) -> InteractionLog:
        """Sorted by user, then time; equal times keep the order of the file."""
        return self.take(np.lexsort((self.time, self.user)))

    def first_of_pairs(self) -> InteractionLog:
        """Of several interactions of a user with an item, the first."""
        pair = self.user * len(self.items) + self.item
        first = np.unique(pair, return_index=True)[1]
        return self.take(np.sort(first)) if first.size < pair.size else self

    def core(self, k: int, min_length: int = 0) -> InteractionLog:
        """The k-core: every user and item keeps at least ``k`` interactions.

        Users also keep at least ``min_length``.
        """
        if max(k, min_length) <= 1:
            return self
        return self.take(core_mask(self.user, self.item, k, max(k, min_length)))

    def compact(self) -> InteractionLog:
        """Only the users and items that interact, renumbered in the same order."""
        users, user = _present(self.user, len(self.users))
        items, item = _present(self.item, len(self.items))
        return replace(
            self,
            users=[self.users[u] for u in users.tolist()],
            items=[self.items[i] for i in items.tolist()],
            user=user,
            item=item,
        )

    @property
    def whole_time(self) -> NDArray[np.int64]:
        """Times as integers: see :func:`~hellm_pyg.datasets.times.whole_times`."""
        return whole_times(self.time)


def _present(
    code: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The codes that occur, ascending, and each code's position among them."""
    occurs = np.bincount(code, minlength=size) > 0
    return np.flatnonzero(occurs), (occurs.cumsum() - 1)[code]


@dataclass(frozen=True)
class LogReport:
    """How a log was read.

    Args:
        rows: Number of rows, bad ones included.
        dropped: Reason to number of the rows that were left out.
        columns: Role to column as it was used, :obj:`None` where there is none.
        guessed: Roles whose column was guessed.
        time_read_as: ``'s'``, ``'ms'``, ``'us'``, ``'ns'``, ``'dates'``, ``'number'``,
            or ``'position'``, where the order of the file is the time.
    """

    rows: int
    dropped: dict[str, int]
    columns: dict[str, str | None]
    guessed: list[str]
    time_read_as: str

    @property
    def time_unit(self) -> str:
        """``'s'`` (since 1970), ``'number'`` or ``'position'``."""
        plain = self.time_read_as in ('number', 'position')
        return self.time_read_as if plain else 's'


def read_log(
    source: Source,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    rating: str | None = None,
    time_unit: TimeUnit | None = None,
    bad_rows: BadRows = 'refuse',
) -> tuple[InteractionLog, LogReport]:
    """Reads sequence text or the named columns of a table.

    Args:
        source: The file or frame.
        user: Column of the user ids; if not given, ``'user_id'``, or the only
            column whose name says that it is meant.
        item: Column of the item ids; likewise, ``'item_id'``.
        time: Column of the times; without it, the position of a row (in sequence
            text, of an item in its user's history) is its time.
        rating: Column of the ratings; not read if not given.
        time_unit: Unit of times that are numbers, see
            :func:`~hellm_pyg.datasets.times.read_times`.
        bad_rows: Whether to ``'refuse'`` or to ``'drop'`` and count rows without an
            id, or with a time or rating that cannot be one.

    Raises:
        ValueError: If a column is missing or holds what it may not.
    """
    given = {'user': user, 'item': item, 'time': time, 'rating': rating}
    if isinstance(source, Path) and ending(source) == SEQUENCES:
        named = [name for name, column in given.items() if column is not None]
        if named:
            raise ValueError(
                f"'{named[0]}' names a column, but sequence text has none (got "
                f"{given[named[0]]!r} for '{source}')"
            )
        log = _read_sequence_log(source)
        return log, LogReport(len(log), {}, given, [], 'position')
    columns, guessed = _columns(source, given)
    table = read_table(source, [name for name in columns.values() if name])
    rows = RowCheck(source, bad_rows, table.num_rows, REMEDY)
    ids = {}
    for role in ('user', 'item'):
        name = str(columns[role])
        ids[role] = encode_ids(table[name], name, role, rows)
    (users, user_code), (items, item_code) = ids['user'], ids['item']
    times = Times(np.arange(table.num_rows), 'position')
    if time is not None:
        times = read_times(table[time], time, rows, time_unit)
        _say_unit(source, time, times, time_unit)
    ratings = None
    if rating is not None:
        ratings = read_numbers(table[rating], rating, 'rating', rows)
    log = InteractionLog(users, items, user_code, item_code, times.value, ratings)
    if rows.dropped:
        log = log.take(rows.kept)
        counts = ', '.join(f'{name} {n}' for name, n in rows.dropped.items())
        logger.warning('%s: rows are dropped: %s', source, counts)
        if len(log) == 0:
            raise ValueError(f"'{source}' has no row that can be used ({counts})")
        log = log.compact()
    report = LogReport(table.num_rows, rows.dropped, columns, guessed, times.read_as)
    return log, report


def _columns(
    source: Source, given: dict[str, str | None]
) -> tuple[dict[str, str | None], list[str]]:
    """The column of each role, and the roles that were guessed."""
    names = column_names(source)
    known = guess_columns(names)
    columns, guessed = dict(given), []
    for role in ('user', 'item'):
        if columns[role] is None:
            columns[role] = known.get(role, f'{role}_id')
            if columns[role] != f'{role}_id':
                guessed.append(role)
                logger.warning(
                    "%s: column '%s' is read with %s='%s'",
                    source,
                    columns[role],
                    role,
                    columns[role],
                )
    roles: dict[str, str] = {}
    for role, name in columns.items():
        if name is None:
            continue
        require_column(name, names, source, role)
        if name in roles:
            raise ValueError(
                f"'{roles[name]}' and '{role}' need two columns of '{source}' (got "
                f"'{name}' for both, its columns: {', '.join(map(repr, names))})"
            )
        roles[name] = role
    if given['time'] is None and 'time' in known:
        logger.warning(
            "%s: the order is that of the file; column '%s' is read with time='%s'",
            source,
            known['time'],
            known['time'],
        )
    return columns, guessed


def _say_unit(source: Source, name: str, times: Times, given: TimeUnit | None) -> None:
    if given is None and times.read_as != 'dates':
        unit = UNIT_NAMES.get(times.read_as)
        said = f'{unit} since 1970' if unit else 'plain numbers, of no known unit'
        logger.info("%s: column '%s' is read as %s", source, name, said)


def _read_sequence_log(path: Path) -> InteractionLog:
    table = read_sequences(path)
    rows = RowCheck(path, 'refuse', table.num_rows)
    users, user = encode_ids(table['user'], 'user', 'user', rows)
    items, item = encode_ids(table['item'], 'item', 'item', rows)
    order = np.argsort(user, kind='stable')
    count = np.bincount(user, minlength=len(users))
    start = count.cumsum() - count
    time = np.empty_like(user)
    time[order] = np.arange(user.size) - start[user[order]]
    return InteractionLog(users, items, user, item, time)
