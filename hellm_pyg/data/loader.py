"""Loaders: deterministic by seed, epoch and batch index, and cheap to skip."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import PairBatch, SequenceBatch
from hellm_pyg.data.negative import NegativeSampler
from hellm_pyg.data.split import (
    INTERACTS,
    LATER,
    History,
    Split,
    edge_tensor,
    history_edges,
)

BatchT = TypeVar('BatchT', PairBatch, SequenceBatch)
LoaderT = TypeVar('LoaderT', bound='Loader')

POOL = 100  # batches that are bucketed by length together
MANY_USERS = 100_000  # above them a step does not permute all to draw a few


def _generator(*key: int) -> torch.Generator:
    # As an entropy alone, (seed, epoch) and (seed, epoch, 0) would be one stream.
    sequence = np.random.SeedSequence(key[0], spawn_key=key[1:])
    state = sequence.generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _sampler(data: HeteroData, num_neg: int) -> NegativeSampler:
    num_users, num_items = int(data['user'].num_nodes), int(data['item'].num_nodes)
    if num_neg > num_items:
        raise ValueError(
            f"'num_neg' needs to be at most {num_items}, the number of items (got "
            f'{num_neg}); draw fewer'
        )
    edges = edge_tensor(data[INTERACTS].edge_index).cpu()
    return NegativeSampler(edges, num_users, num_items)


def _indices(users: Tensor | Sequence[int], num_users: int) -> Tensor:
    """Users as a vector.

    Raises:
        ValueError: If they are not indices of users.
    """
    user = torch.as_tensor(users)
    if user.numel() and (user.dtype == torch.bool or user.is_floating_point()):
        raise ValueError(
            f"'users' needs to hold indices of users (got {user.dtype}): those of a "
            f"mask are 'mask.nonzero()'"
        )
    user = user.long().view(-1).cpu()
    unknown = (user < 0) | (user >= num_users)
    if bool(unknown.any()):
        raise ValueError(
            f"'users' needs to lie in [0, {num_users}) (got "
            f'{user[unknown].tolist()[:5]})'
        )
    return user


def _distinct(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Distinct numbers below ``size``, drawn uniformly, at most ``count``."""
    if size <= max(MANY_USERS, 64 * count):
        return torch.randperm(size, generator=generator)[:count]
    seed = int(torch.randint(2**62, (), generator=generator))
    draw = np.random.default_rng(seed).choice(size, count, replace=False)
    return torch.from_numpy(draw)


def _check_at_least(name: str, value: int, least: int, why: str = '') -> None:
    if value < least:
        raise ValueError(f"'{name}' needs to be at least {least}{why} (got {value})")


class Plan(NamedTuple):
    """One epoch: batch ``k`` holds the rows ``order[ptr[k]:ptr[k + 1]]``."""

    order: Tensor
    ptr: list[int]


class Loader(ABC, Generic[BatchT]):
    r"""A re-iterable sequence of mini-batches.

    Batch :math:`k` of an epoch is a function of ``(seed, epoch, k)`` alone, so that
    iteration can start anywhere without computing what came before.
    """

    def __init__(self, seed: int) -> None:
        _check_at_least('seed', seed, 0)
        self.seed = seed
        self.epoch = 0
        self.rank = 0
        self.world_size = 1
        self.even = False
        self._plan: Plan | None = None

    @abstractmethod
    def _make_plan(self, epoch: int) -> Plan: ...

    @abstractmethod
    def _batch(self, epoch: int, index: int, rows: Tensor) -> BatchT: ...

    def _current_plan(self) -> Plan:
        if self._plan is None:
            self._plan = self._make_plan(self.epoch)
        return self._plan

    def _indices(self) -> range:
        total = len(self._current_plan().ptr) - 1
        if self.even:
            total -= total % self.world_size
        return range(self.rank, total, self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration yields."""
        _check_at_least('epoch', epoch, 0)
        if epoch != self.epoch:
            self._plan = None
        self.epoch = epoch

    def shard(self: LoaderT, rank: int, world_size: int, even: bool = False) -> LoaderT:
        """The share of one process: every ``world_size``-th batch.

        Args:
            rank: Process, from 0.
            world_size: Number of processes.
            even: Drop the incomplete last round, so that all processes take the same
                number of steps; otherwise the shares partition the epoch.

        Raises:
            ValueError: If ``rank`` is not below ``world_size``.
        """
        if not 0 <= rank < world_size:
            raise ValueError(
                f"'rank' needs to be from 0 to 'world_size' - 1 (got {rank} of "
                f'{world_size})'
            )
        share = copy.copy(self)
        share.rank, share.world_size, share.even = rank, world_size, even
        return share

    def batches(self, start: int = 0) -> Iterator[BatchT]:
        """Iterates over the epoch from its batch ``start`` on (of this share)."""
        _check_at_least('start', start, 0)
        epoch, plan = self.epoch, self._current_plan()
        for index in self._indices()[start:]:
            rows = plan.order[plan.ptr[index] : plan.ptr[index + 1]]
            yield self._batch(epoch, index, rows)

    def __iter__(self) -> Iterator[BatchT]:
        return self.batches()

    def __len__(self) -> int:
        return len(self._indices())


class PairLoader(Loader[PairBatch]):
    r"""Mini-batches of a user, an item of theirs, and items that are not.

    With ``sampling='user'`` an epoch is :math:`\lfloor E / B \rfloor + 1` steps of
    :math:`\min(U, B)` distinct users drawn uniformly, each with one random training
    item. They are the first of a permutation of all, unless these are more than
    100,000 and :math:`64 B`, when a step costs :math:`B` draws. With
    ``sampling='interaction'`` it is one pass over the shuffled interactions.
    Negatives are uniform over the items outside the training history; held-out items
    may be among them.

    Args:
        data: Split interactions.
        batch_size: Triples of a batch :math:`B`.
        num_neg: Negatives of a triple, at most :math:`I`; ``neg_item`` has shape
            :math:`[B]` for one and :math:`[B, n]` for more.
        sampling: ``'user'`` or ``'interaction'``.
        seed: Seed of order and negatives.

    Raises:
        ValueError: On un-split data or an argument out of range.
    """

    def __init__(
        self,
        data: HeteroData,
        batch_size: int = 1024,
        num_neg: int = 1,
        sampling: Literal['user', 'interaction'] = 'user',
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        _check_at_least('batch_size', batch_size, 1)
        _check_at_least('num_neg', num_neg, 1)
        if sampling not in ('user', 'interaction'):
            raise ValueError(
                f"'sampling' needs to be 'user' or 'interaction' (got {sampling!r})"
            )
        self.batch_size = batch_size
        self.num_neg = num_neg
        self.sampling = sampling
        self._train = history_edges(data, 'train').cpu()
        self._edge_user = self._train.user
        self._users = self._train.length.nonzero().view(-1)
        self._sampler = _sampler(data, num_neg)

    def _make_plan(self, epoch: int) -> Plan:
        total, size = self._edge_user.numel(), self.batch_size
        if self.sampling == 'user':  # rows are drawn batch by batch
            steps = total // size + 1 if total > 0 else 0
            return Plan(self._users[:0], [0] * (steps + 1))
        order = torch.randperm(total, generator=_generator(self.seed, epoch))
        return Plan(order, [*range(0, total, size), total])

    def _batch(self, epoch: int, index: int, rows: Tensor) -> PairBatch:
        generator = _generator(self.seed, epoch, index)
        if self.sampling == 'user':
            number = self._users.numel()
            user = self._users[_distinct(number, self.batch_size, generator)]
            length = self._train.length[user]
            draw = torch.rand(user.numel(), dtype=torch.float64, generator=generator)
            rows = self._train.ptr[user] + (draw * length).long().clamp_(max=length - 1)
        user = self._edge_user[rows]
        neg_item = self._sampler.sample(user, self.num_neg, generator)
        if self.num_neg == 1:
            neg_item = neg_item.squeeze(-1)
        return PairBatch(user, self._train.item[rows], neg_item)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.sampling}, batch_size={self.batch_size})'
        )


class SequenceLoader(Loader[SequenceBatch]):
    r"""Mini-batches of histories and what comes next.

    A user's whole sequence, held-out items included, is first cut to its last
    ``max_len`` items :math:`s_1, \ldots, s_n`; its training part is
    :math:`s_1, \ldots, s_m`, with :math:`m = n - 2` where two items are held out.

    * ``'train'``, ``targets='all'``: one row a user,
      :math:`s_1, \ldots, s_{m-1} \to s_2, \ldots, s_m`. Here the training part
      alone is cut, to ``max_len`` inputs and the target of the last: otherwise the
      longest histories of the other splits, and of a recommendation, would end at
      positions that no training row reaches.
    * ``'train'``, ``targets='last'``: one row a proper prefix,
      :math:`s_1, \ldots, s_{t-1} \to s_t` for :math:`t = 2, \ldots, m`.
    * ``'val'``: :math:`s_1, \ldots, s_m \to` the validation item.
    * ``'test'``: the same, followed by the validation item with
      ``history='train+val'``, :math:`\to` the test item.
    * ``'all'``: everything known, no target.

    Users without the target of the split are skipped. A history can be empty (a user
    whose items are all held out): its row then has no items.

    Args:
        data: Split interactions.
        split: ``'train'``, ``'val'``, ``'test'`` or ``'all'``.
        batch_size: Rows of a batch.
        max_len: Number of last items that count.
        targets: ``'all'`` positions or the ``'last'`` of every prefix (training).
        num_neg: Negatives of a target (training), outside the training history; at
            most :math:`I`.
        history: What test targets are predicted from.
        shuffle: Shuffle rows and batches; by default when training.
        bucket: Put rows of similar length into a batch. Shuffled rows are sorted
            within pools of 100 batches, others as a whole, longest first.
            Without it and without shuffling rows keep the order of ``users``.
            By default, where that changes no weights: a mean over 128 targets of
            short rows is as large a step as one over 2,000 of long ones, so that
            training on all positions buckets only with ``batch_tokens``.
        seed: Seed of order and negatives.
        users: Restricts the rows to these users, in this order; by default, except
            with ``'all'``, to the ``sample_mask`` of the users, if they have one.
        batch_tokens: Instead of ``batch_size``, bounds the number of rows times the
            longest of them. The number of batches can then vary by epoch.

    Raises:
        ValueError: On un-split data or an argument out of range.
    """

    def __init__(
        self,
        data: HeteroData,
        split: Split = 'train',
        batch_size: int = 256,
        max_len: int = 50,
        targets: Literal['all', 'last'] = 'all',
        num_neg: int = 0,
        history: History = 'train+val',
        shuffle: bool | None = None,
        bucket: bool | None = None,
        seed: int = 0,
        users: Tensor | Sequence[int] | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        super().__init__(seed)
        known = history_edges(data, split, history).cpu()
        held_out = {'train': 2, 'val': 2, 'test': 1, 'all': 0}[split]
        if split == 'train' and targets == 'all':
            held_out = 0
        why = f' with split={split!r}, held-out items included' if held_out else ''
        least = held_out + (2 if targets == 'last' and split == 'train' else 1)
        _check_at_least('max_len', max_len, least, why)
        _check_at_least('batch_size', batch_size, 1)
        _check_at_least('num_neg', num_neg, 0)
        if batch_tokens is not None:
            _check_at_least('batch_tokens', batch_tokens, max_len, " ('max_len')")
        if targets not in ('all', 'last'):
            raise ValueError(f"'targets' needs to be 'all' or 'last' (got {targets!r})")
        if num_neg > 0 and split != 'train':
            raise ValueError(
                f"'num_neg' needs to be 0 unless split='train' (got {num_neg} with "
                f'split={split!r})'
            )
        self.split = split
        self.batch_size = batch_size
        self.max_len = max_len
        self.targets = targets
        self.num_neg = num_neg
        self.shuffle = split == 'train' if shuffle is None else shuffle
        if bucket is None:
            weighed = split == 'train' and targets == 'all'
            bucket = batch_tokens is not None or not weighed
        self.bucket = bucket
        self.batch_tokens = batch_tokens
        self._item = known.item
        self._target: Tensor | None = None
        self._sampler: NegativeSampler | None = None
        if num_neg > 0:
            self._sampler = _sampler(data, num_neg)
        self._make_rows(data, known.ptr, users, held_out)

    def _make_rows(
        self,
        data: HeteroData,
        ptr: Tensor,
        users: Tensor | Sequence[int] | None,
        held_out: int,
    ) -> None:
        num_users = ptr.numel() - 1
        if users is None and self.split != 'all' and 'sample_mask' in data['user']:
            users = data['user'].sample_mask.nonzero()
        user = torch.arange(num_users) if users is None else _indices(users, num_users)
        if self.split in ('val', 'test'):
            target = data['user'][f'{self.split}_item'].cpu()[user]
            user, self._target = user[target >= 0], target[target >= 0]
        room, whole = self.max_len, ptr[user + 1] - ptr[user]
        if self.split == 'train' and self.targets == 'all':
            room += 1  # the target of the last input
        elif LATER in data.edge_types:
            # What comes after the targets takes no room from what is known before.
            whole = whole + held_out
        else:
            ends = history_edges(data, 'all').ptr.cpu()
            whole = ends[user + 1] - ends[user]
        start = ptr[user] + (whole - room).clamp_(min=0)
        length = (ptr[user + 1] - start).clamp_(min=0)
        if self.split == 'train':
            keep = length >= 2
            user, start, length = user[keep], start[keep], length[keep] - 1
            if self.targets == 'last':  # a row of n inputs gives n prefixes
                row = torch.arange(user.numel()).repeat_interleave(length)
                first = length.cumsum(0) - length
                length = torch.arange(row.numel()) - first[row] + 1
                user, start = user[row], start[row]
        self._user, self._start, self._length = user, start, length

    @property
    def num_rows(self) -> int:
        """Number of rows of an epoch (over all shards)."""
        return self._user.numel()

    def _make_plan(self, epoch: int) -> Plan:
        generator = _generator(self.seed, epoch)
        order = torch.arange(self.num_rows)
        if self.shuffle:
            order = torch.randperm(self.num_rows, generator=generator)
        if self.num_rows == 0:
            return Plan(order, [0])
        if self.bucket:
            pools = order.split(self._pool_size() if self.shuffle else self.num_rows)
            order = torch.cat(
                [
                    pool[self._length[pool].argsort(stable=True, descending=True)]
                    for pool in pools
                ]
            )
        ptr = self._cut(order)
        if not (self.shuffle and self.bucket):
            return Plan(order, ptr)
        chunks = order.split((torch.tensor(ptr[1:]) - torch.tensor(ptr[:-1])).tolist())
        shuffled = torch.randperm(len(chunks), generator=generator).tolist()
        chunks = tuple(chunks[chunk] for chunk in shuffled)
        ptr = [0, *np.cumsum([chunk.numel() for chunk in chunks]).tolist()]
        return Plan(torch.cat(chunks), ptr)

    def _pool_size(self) -> int:
        rows = self.batch_size
        if self.batch_tokens is not None:
            rows = int(self.batch_tokens / max(self._length.float().mean().item(), 1))
        return rows * POOL

    def _cut(self, order: Tensor) -> list[int]:
        if self.batch_tokens is None:
            return [*range(0, order.numel(), self.batch_size), order.numel()]
        ptr, longest = [0], 1
        for index, length in enumerate(self._length[order].tolist()):
            longest = max(longest, length)
            if (index + 1 - ptr[-1]) * longest > self.batch_tokens:
                ptr.append(index)
                longest = max(length, 1)
        return [*ptr, order.numel()]

    def _batch(self, epoch: int, index: int, rows: Tensor) -> SequenceBatch:
        user, start, length = self._user[rows], self._start[rows], self._length[rows]
        batch = torch.arange(rows.numel()).repeat_interleave(length)
        shift = start - (length.cumsum(0) - length)
        position = torch.arange(batch.numel()) + shift[batch]
        target, owner = None, user
        if self._target is not None:
            target = self._target[rows]
        elif self.split == 'train' and self.targets == 'all':
            target, owner = self._item[position + 1], user[batch]
        elif self.split == 'train':
            target = self._item[start + length]
        neg_item = None
        if self._sampler is not None:
            generator = _generator(self.seed, epoch, index)
            neg_item = self._sampler.sample(owner, self.num_neg, generator)
        return SequenceBatch(user, self._item[position], batch, target, neg_item)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.split}, {self.num_rows} rows)'
