"""What a model may see of a mini-batch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hellm_pyg.indices import check_indices

BatchT = TypeVar('BatchT', bound='PairBatch | SequenceBatch')


def _to(batch: BatchT, device: torch.device | str) -> BatchT:
    # A copy to the CPU that does not block could be read before it is done.
    non_blocking = torch.device(device).type != 'cpu'
    moved: dict[str, Any] = {
        field.name: value.to(device, non_blocking=non_blocking)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return replace(batch, **moved)


@dataclass(frozen=True)
class PairBatch:
    r"""Triples of the pairwise ranking loss.

    Args:
        user: User of each triple, int64 of shape :math:`[B]`.
        pos_item: An item of the user's training history, :math:`[B]`.
        neg_item: Items outside the user's training history, :math:`[B]`, or
            :math:`[B, n]` of several a triple.
    """

    user: Tensor
    pos_item: Tensor
    neg_item: Tensor

    @property
    def num_targets(self) -> int:
        """Number of terms that the batch's mean loss averages."""
        return self.user.numel()

    def check(self, num_users: int, num_items: int) -> None:
        """Refuses triples that are none of a model's.

        Args:
            num_users: Number of users of the model.
            num_items: Number of its items.

        Raises:
            ValueError: If there are none, shapes do not fit, or an id is out of range.
        """
        size = self.user.numel()
        if size == 0:
            raise ValueError("'batch' needs at least one triple (got none)")
        flat = self.user.dim() == 1 and self.pos_item.shape == self.user.shape
        if not flat or self.neg_item.shape[:1] != (size,) or self.neg_item.dim() > 2:
            raise ValueError(
                f"'batch' needs 'user' and 'pos_item' of shape [B] and 'neg_item' of "
                f'[B] or [B, n] (got {list(self.user.shape)}, '
                f'{list(self.pos_item.shape)} and {list(self.neg_item.shape)})'
            )
        check_indices('batch.user', self.user, num_users, 'users')
        check_indices('batch.pos_item', self.pos_item, num_items, 'items')
        check_indices('batch.neg_item', self.neg_item, num_items, 'items')

    def to(self, device: torch.device | str) -> PairBatch:
        """Returns the batch on another device."""
        return _to(self, device)


@dataclass(frozen=True)
class SequenceBatch:
    r"""Histories as one flat vector of items beside a batch vector.

    There is no padding and hence no padding id. Rows hold their items oldest
    first, and ``batch`` is sorted.

    Args:
        user: User of each row, int64 of shape :math:`[B]`; :obj:`-1` for a
            user that the model has not been trained on.
        item: Items of all rows, :math:`[T]`.
        batch: Row of each item, :math:`[T]`, ascending.
        target: The next item: of each position, :math:`[T]`
            (``targets='all'``), or of each row, :math:`[B]`
            (``targets='last'`` and evaluation). :obj:`None` at inference.
        neg_item: Sampled negatives of each target, :math:`[T, n]` or
            :math:`[B, n]`; :obj:`None` if none were asked for.
    """

    user: Tensor
    item: Tensor
    batch: Tensor
    target: Tensor | None = None
    neg_item: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of rows :math:`B`."""
        return self.user.numel()

    @property
    def num_targets(self) -> int:
        """Number of terms that the batch's mean loss averages."""
        return 0 if self.target is None else self.target.numel()

    @property
    def length(self) -> Tensor:
        """Number of items in each row, :math:`[B]`."""
        return torch.bincount(self.batch, minlength=self.batch_size)

    @property
    def position(self) -> Tensor:
        """Position of each item in its row, from 0, :math:`[T]`."""
        length = self.length
        start = length.cumsum(0) - length
        index = torch.arange(self.item.numel(), device=self.item.device)
        return index - start[self.batch]

    @property
    def last(self) -> Tensor:
        """Flat index of the last item of each row, -1 of an empty one, :math:`[B]`."""
        length = self.length
        return (length.cumsum(0) - 1).where(length > 0, -1)

    @property
    def targets_positions(self) -> bool:
        """Whether each position has a target, rather than each row."""
        # Where rows are empty the two counts may agree: a target a row, then.
        whole = self.num_targets == self.item.numel() != self.batch_size
        return self.target is not None and whole

    @property
    def seen(self) -> tuple[Tensor, Tensor]:
        """Target and item pairs: what stands in the history of each target.

        The first vector counts targets, ascending, the second holds items. A
        position's history ends with its own item; a row's has all its items.
        """
        if self.targets_positions:
            count = self.position + 1
            end = torch.arange(self.item.numel(), device=self.item.device)
        else:
            count, end = self.length, self.last
        target = torch.arange(count.numel(), device=count.device)
        target = target.repeat_interleave(count)
        back = (
            count.cumsum(0)[target]
            - 1
            - torch.arange(target.numel(), device=count.device)
        )
        return target, self.item[end[target] - back]

    def seen_by(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """:attr:`seen` of some of the targets, which count anew.

        Args:
            kept: Which targets are left, bool of shape :math:`[T]` or :math:`[B]`.
        """
        target, item = self.seen
        inside = kept[target]
        return (kept.cumsum(0) - 1)[target[inside]], item[inside]

    def check(self, num_items: int) -> None:
        """Refuses histories that are none of a model's items.

        Args:
            num_items: Number of items of the model.

        Raises:
            ValueError: If shapes do not fit, rows are not in order, or an id is out of
                range.
        """
        if self.item.dim() != 1 or self.item.shape != self.batch.shape:
            raise ValueError(
                f"'batch.item' and 'batch.batch' need to be of the same shape [T] (got "
                f'{list(self.item.shape)} and {list(self.batch.shape)})'
            )
        check_indices('batch.item', self.item, num_items, 'items')
        check_indices('batch.batch', self.batch, self.batch_size, 'rows')
        if bool((self.batch[1:] < self.batch[:-1]).any()):
            raise ValueError(
                f"'batch.batch' needs to ascend (got {self.batch}): sort the items by "
                f'their rows'
            )
        for name in ('target', 'neg_item'):
            index = getattr(self, name)
            if index is not None:
                check_indices(f'batch.{name}', index, num_items, 'items')

    def to(self, device: torch.device | str) -> SequenceBatch:
        """Returns the batch on another device."""
        return _to(self, device)
