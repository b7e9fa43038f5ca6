"""A log of interactions as arrays, and what is dropped from it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hellm_pyg.datasets.columns import (
    encode_ids,
    read_numbers,
    read_times,
    whole_times,
)
from hellm_pyg.datasets.ids import Id
from hellm_pyg.datasets.kcore import core_mask
from hellm_pyg.datasets.tables import (
    SEQUENCES,
    column_names,
    ending,
    read_sequences,
    read_table,
    require_column,
)

logger = logging.getLogger(__name__)

USUAL_TIMES = {'time', 'timestamp', 'date', 'datetime', 'unixreviewtime'}


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

    def core(self, k: int) -> InteractionLog:
        """The k-core: every user and item keeps at least ``k`` interactions."""
        return self.take(core_mask(self.user, self.item, k)) if k > 1 else self

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
        """Times as integers: see :func:`~hellm_pyg.datasets.columns.whole_times`."""
        return whole_times(self.time)


def _present(
    code: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The codes that occur, ascending, and each code's position among them."""
    occurs = np.bincount(code, minlength=size) > 0
    return np.flatnonzero(occurs), (occurs.cumsum() - 1)[code]


def read_log(
    path: Path,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    rating: str | None = None,
) -> InteractionLog:
    """Reads sequence text or the named columns of a table.

    Args:
        path: The file.
        user: Column of the user ids; ``'user_id'`` if not given.
        item: Column of the item ids; ``'item_id'`` if not given.
        time: Column of the times; without it, the position of a row (in sequence
            text, of an item in its user's history) is its time.
        rating: Column of the ratings; not read if not given.

    Raises:
        ValueError: If a column is missing or holds what it may not.
    """
    if ending(path) == SEQUENCES:
        named = {'user': user, 'item': item, 'time': time, 'rating': rating}
        given = [name for name, column in named.items() if column is not None]
        if given:
            raise ValueError(
                f"'{given[0]}' names a column, but sequence text has none (got "
                f"{named[given[0]]!r} for '{path}')"
            )
        return _read_sequence_log(path)
    user, item = user or 'user_id', item or 'item_id'
    names = column_names(path)
    wanted = {'user': user, 'item': item, 'time': time, 'rating': rating}
    columns = {key: name for key, name in wanted.items() if name is not None}
    for key, name in columns.items():
        require_column(name, names, path, key)
    unused = [name for name in names if name.lower() in USUAL_TIMES]
    if time is None and unused:
        logger.warning(
            "%s: the order is that of the file; column '%s' is read with time='%s'",
            path,
            unused[0],
            unused[0],
        )
    table = read_table(path, list(dict.fromkeys(columns.values())))
    users, user_code = encode_ids(table[user], path, user)
    items, item_code = encode_ids(table[item], path, item)
    times: NDArray[np.generic] = np.arange(table.num_rows)
    if time is not None:
        times = read_times(table[time], path, time)
    ratings = None
    if rating is not None:
        ratings = read_numbers(table[rating], path, rating)
    return InteractionLog(users, items, user_code, item_code, times, ratings)


def _read_sequence_log(path: Path) -> InteractionLog:
    table = read_sequences(path)
    users, user = encode_ids(table['user'], path, 'user')
    items, item = encode_ids(table['item'], path, 'item')
    order = np.argsort(user, kind='stable')
    count = np.bincount(user, minlength=len(users))
    start = count.cumsum() - count
    time = np.empty_like(user)
    time[order] = np.arange(user.size) - start[user[order]]
    return InteractionLog(users, items, user, item, time)
