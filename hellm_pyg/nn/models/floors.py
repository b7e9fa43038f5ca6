"""What every trained model must beat: popularity and item neighbours."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce

from hellm_pyg.data.batch import PairBatch, SequenceBatch
from hellm_pyg.nn.models.base import check_size
from hellm_pyg.nn.models.item_graph import plain_tensor


class Floor(torch.nn.Module):
    """A recommender that counts instead of being trained.

    :meth:`fit` reads the training interactions once, and they become part of
    the state; whatever data :meth:`encode` sees later, also data with the
    validation items folded in, counts and similarities stay those of the
    training data. :meth:`on_epoch_start` is another name for :meth:`fit`.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
    """

    sampling: ClassVar[Literal['pairs', 'sequences', 'none']] = 'none'
    edge_index: Tensor

    def __init__(self, num_users: int, num_items: int) -> None:
        super().__init__()
        for name, value in (('num_users', num_users), ('num_items', num_items)):
            if value < 1:
                raise ValueError(f"'{name}' must be positive (got {value})")
        self.num_users = num_users
        self.num_items = num_items
        empty = torch.empty(2, 0, dtype=torch.long)
        self.register_buffer('edge_index', empty, persistent=False)

    def fit(self, data: HeteroData) -> None:
        """Reads the training interactions, those that the data holds now."""
        check_size(data, num_users=self.num_users, num_items=self.num_items)
        self.edge_index = plain_tensor(data['user', 'interacts', 'item'].edge_index)

    def on_epoch_start(self, data: HeteroData) -> None:
        """Same as :meth:`fit`."""
        self.fit(data)

    def loss(self, data: HeteroData, batch: PairBatch | SequenceBatch) -> Tensor:
        """There is nothing to train.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f'{self.__class__.__name__} has no loss; call fit(data) once'
        )

    def embeddings(self, data: HeteroData) -> dict[str, Tensor]:
        """Returns no vectors."""
        return {}

    def get_extra_state(self) -> Tensor:
        """Returns the training interactions, whose number the data decides."""
        return self.edge_index

    def set_extra_state(self, state: Tensor) -> None:
        """Takes the training interactions of another model."""
        self.edge_index = state.to(self.edge_index.device)

    def _check_fitted(self, data: HeteroData) -> None:
        check_size(data, num_users=self.num_users, num_items=self.num_items)
        if self.edge_index.numel() == 0:
            raise ValueError(
                f'{self.__class__.__name__} has seen no interaction (got an empty '
                "'edge_index'); call fit(data) first, with data that have some"
            )

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.num_users}, {self.num_items})'


class Popularity(Floor):
    r"""Scores an item by the number of its training interactions.

    .. math::
        s(u, i) = n_i

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.

    Raises:
        ValueError: If a number is not positive, the data does not fit, or
            :meth:`fit` was not called.
    """

    def encode(self, data: HeteroData) -> Tensor:
        """Returns the training count of each item, float of shape [I]."""
        self._check_fitted(data)
        return self.edge_index[1].bincount(minlength=self.num_items).float()

    def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        """Returns the same scores [B, I] for each row."""
        return encoded.repeat(batch.batch_size, 1)


class ItemKNN(Floor):
    r"""Cosine similarity of items in their users, without a cut-off.

    With :math:`n_{ij}` users of both items in the training data,

    .. math::
        s(u, i) = \sum_{j \in \mathcal{H}_u \setminus \{i\}}
        \frac{n_{ij}}{\sqrt{n_i n_j}}

    The history :math:`\mathcal{H}_u`, a set, is read from the batch, hence may
    hold items (the validation item, a new user's items) that the similarities
    have not seen. Items similar to none get exactly 0, and equal sums are equal
    numbers. Of the item-item matrix only the rows that a block of users needs
    exist at a time, and these are sparse.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        block_size: Number of users scored at a time, which bounds memory.

    Raises:
        ValueError: If a number is not positive, the data does not fit, or
            :meth:`fit` was not called.
    """

    def __init__(self, num_users: int, num_items: int, block_size: int = 256) -> None:
        super().__init__(num_users, num_items)
        if block_size < 1:
            raise ValueError(f"'block_size' must be positive (got {block_size})")
        self.block_size = block_size

    def encode(self, data: HeteroData) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what scoring multiplies with.

        Returns:
            The 0/1 matrix of training interactions and its transpose, sparse
            of shapes [U, I] and [I, U], and the inverse root of each item's
            count [I], 0 for an item that nobody has.
        """
        self._check_fitted(data)
        edge_index = coalesce(self.edge_index)
        size = (self.num_users, self.num_items)
        users = _sparse(
            edge_index,
            torch.ones((), dtype=torch.double, device=edge_index.device),
            size,
        )
        count = edge_index[1].bincount(minlength=self.num_items).double()
        scale = count.rsqrt().masked_fill(count == 0, 0.0)
        return users, users.t().coalesce(), scale

    def score(
        self, encoded: tuple[Tensor, Tensor, Tensor], batch: SequenceBatch
    ) -> Tensor:
        """Returns the scores [B, I] of the rows' histories."""
        batch.check(self.num_items)
        out = batch.item.new_zeros(batch.batch_size, self.num_items).float()
        for start in range(0, batch.batch_size, self.block_size):
            rows = out[start : start + self.block_size]
            inside = (batch.batch >= start) & (batch.batch < start + len(rows))
            if bool(inside.any()):
                row, item = batch.batch[inside] - start, batch.item[inside]
                rows.copy_(self._score_block(encoded, row, item, len(rows)))
        return out

    def _score_block(
        self,
        encoded: tuple[Tensor, Tensor, Tensor],
        row: Tensor,
        item: Tensor,
        num_rows: int,
    ) -> Tensor:
        users, items, scale = encoded
        known, position = item.unique(return_inverse=True)
        size = (known.numel(), self.num_items)
        shared = torch.sparse.mm(items.index_select(0, known), users).coalesce()
        left, right = known[shared.indices()[0]], shared.indices()[1]
        cosine = shared.values() * scale[left] * scale[right]
        other = left != right
        similarity = _sparse(shared.indices()[:, other], cosine[other], size)
        pairs = coalesce(torch.stack([row, position]))  # an item counts once
        history = _sparse(pairs, scale.new_ones(()), (num_rows, size[0]))
        # Summed in 64 bits and rounded to 32, so that ties stay ties.
        return torch.sparse.mm(history, similarity).float().to_dense()


def _sparse(index: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(
        index, value.expand(index.size(1)), size, check_invariants=False
    ).coalesce()
