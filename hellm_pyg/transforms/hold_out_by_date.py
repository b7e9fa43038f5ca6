"""The split of all users' interactions at two dates."""

from __future__ import annotations

from datetime import UTC, date, datetime
from itertools import pairwise

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from hellm_pyg.data.split import INTERACTS, LATER, chronological, interaction_edges

Date = str | date | int


@functional_transform('hold_out_by_date')
class HoldOutByDate(BaseTransform):
    r"""Holds out what happened from two dates on
    (functional name: :obj:`hold_out_by_date`).

    With the dates :math:`t_v < t_t`, an interaction of the time :math:`t` belongs to

    * training, and stays an edge, if :math:`t < t_v`;
    * the validation period if :math:`t_v \le t < t_t`: the first item of a user in it
      becomes ``val_item``;
    * the test period if :math:`t_t \le t` (and :math:`t <` ``until``): the first item
      of a user in it becomes ``test_item``.

    The dates are the same for all users, so that no model learns from what is later
    than any validation target, and a test target is predicted from a past that ends
    at or before :math:`t_t`. Under :class:`LeaveOneOut`, on the other hand, the
    training items of one user can be later than the test item of another. Of equal
    times in a period, the first edge (of the file) counts.

    Users with fewer than ``min_history`` training items have no targets (-1), nor has
    one without an interaction in the period. The edges of the relation
    ``('user', 'later', 'item')`` keep what is neither a training edge nor a target, in
    the order of user and time. No model trains on it. It is part of the history
    before a test target as far as it is earlier (``history='train+val'``), and of
    what is known when items are recommended, see
    :func:`~hellm_pyg.data.split.history_edges`.

    Filters that read all interactions, such as a k-core, also count those after the
    dates; they choose which users and items exist, not which are trained on.

    Writes ``val_item``, ``test_item``, ``val_time`` and ``test_time``, each of shape
    :math:`[U]`. Edges end sorted by user, then time, with their other attributes and
    filled :class:`~torch_geometric.EdgeIndex` caches.

    Args:
        val_from: First moment of the validation period: ISO 8601 text
            (``'2024-05-01'``; without a zone, UTC is meant), a date, or a number in
            the unit of the interactions' ``time``.
        test_from: First moment of the test period, and the end of the other.
        until: End of the test period; what comes from it on is nobody's target.
        min_history: Smallest number of training items of a user with targets.

    Raises:
        ValueError: If the dates do not ascend or cannot be read.
    """

    def __init__(
        self,
        val_from: Date,
        test_from: Date,
        until: Date | None = None,
        min_history: int = 1,
    ) -> None:
        if min_history < 0:
            raise ValueError(
                f"'min_history' needs to be at least 0 (got {min_history})"
            )
        self.val_from = val_from
        self.test_from = test_from
        self.until = until
        self.min_history = min_history
        if any(late <= early for early, late in pairwise(self._cuts)):
            shown = ', '.join(f'{k}={v!r}' for k, v in self._given.items())
            raise ValueError(f'{self._names} need to ascend (got {shown})')

    def forward(self, data: HeteroData) -> HeteroData:
        """Splits the data.

        Raises:
            ValueError: If the data are split already, have no times or no times of
                this kind, an interaction is of no user or item of the data, or a period
                or the training part holds nothing of use.
        """
        if 'val_item' in data['user'] or 'test_item' in data['user']:
            raise ValueError(
                "'data' is split already (got 'val_item' among the user attributes): "
                "apply one of 'HoldOutByDate' and 'LeaveOneOut', once"
            )
        store = data[INTERACTS]
        self._check_times(data)
        edge_index = interaction_edges(data)
        num_users = int(data['user'].num_nodes)
        order = chronological(edge_index[0], store.time)
        user, item = edge_index[:, order]
        time = store.time[order]
        cuts = torch.tensor(self._cuts, device=time.device)
        period = torch.bucketize(time, cuts, right=True)
        history = torch.bincount(user[period == 0], minlength=num_users)
        eligible = history[user] >= self.min_history
        later = period > 0
        for number, split in enumerate(('val', 'test'), start=1):
            target = _first_of_users(user, (period == number) & eligible)
            if target.numel() == 0:
                raise ValueError(self._nothing(split, time))
            later[target] = False
            for name, value in (('item', item), ('time', time)):
                out = value.new_full((num_users,), -1)
                out[user[target]] = value[target]
                data['user'][f'{split}_{name}'] = out
        train = period == 0
        names = [name for name in store.edge_attrs() if name != 'edge_index']
        for relation, mask in ((LATER, later), (INTERACTS, train)):
            for name in names:
                data[relation][name] = store[name][order[mask]]
            data[relation].edge_index = EdgeIndex(
                torch.stack([user[mask], item[mask]]),
                sparse_size=(num_users, int(data['item'].num_nodes)),
                sort_order='row',
            ).fill_cache_()
        return data

    @property
    def _given(self) -> dict[str, Date]:
        given = {'val_from': self.val_from, 'test_from': self.test_from}
        return given if self.until is None else given | {'until': self.until}

    @property
    def _names(self) -> str:
        *first, last = map(repr, self._given)
        return f'{", ".join(first)} and {last}'

    @property
    def _cuts(self) -> list[int]:
        return [_number(name, value) for name, value in self._given.items()]

    def _check_times(self, data: HeteroData) -> None:
        unit = data.get('time_unit', 's')
        if 'time' not in data[INTERACTS] or unit == 'position':
            raise ValueError(
                "'data' needs times to be split by date (got none, the order of the "
                "file alone): name the column of the times as 'time', or apply "
                "'LeaveOneOut'"
            )
        dates = [v for v in self._given.values() if not isinstance(v, int)]
        if unit != 's' and dates:
            raise ValueError(
                f'{self._names} need to be numbers, as the times '
                f'are (got {dates[0]!r}): say in which unit the times are, '
                f"time_unit='s', or write them as ISO 8601 text"
            )

    def _nothing(self, split: str, time: Tensor) -> str:
        span = 'there are no interactions'
        if time.numel() > 0:
            first, last = (_shown(int(t)) for t in (time.min(), time.max()))
            span = f'the times run from {first} to {last}'
        return (
            f"'val_from' and 'test_from' leave no {split} target among the users with "
            f'{self.min_history} training items or more (got {self.val_from!r} and '
            f'{self.test_from!r}; {span})'
        )

    def __repr__(self) -> str:
        until = '' if self.until is None else f', until={self.until!r}'
        return (
            f'{self.__class__.__name__}({self.val_from!r}, {self.test_from!r}{until})'
        )


def _number(name: str, value: Date) -> int:
    """Seconds since 1970 of a date, or the number itself."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"'{name}' needs an ISO 8601 date such as '2024-05-01' (got {value!r})"
            ) from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError(f"'{name}' needs a date or a whole number (got {value!r})")
    value = value if value.tzinfo else value.replace(tzinfo=UTC)
    # Times are rounded down to seconds: so is a date, lest it fall between them.
    return int(value.timestamp() // 1)


def _first_of_users(user: Tensor, mask: Tensor) -> Tensor:
    """Positions of each user's first edge in a mask; edges are sorted by user."""
    position = mask.nonzero().view(-1)
    owner = user[position]
    is_first = torch.ones_like(position, dtype=torch.bool)
    is_first[1:] = owner[1:] != owner[:-1]
    return position[is_first]


def _shown(time: int) -> str:
    # Plain numbers are too small to be mistaken for recent dates.
    if 10**8 < time < 10**11:
        return f'{datetime.fromtimestamp(time, UTC):%Y-%m-%d} ({time})'
    return str(time)
