"""What every trained model must beat: popularity and item neighbours."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce

from hellm_pyg.data.batch import PairBatch, SequenceBatch
from hellm_pyg.nn.models.base import check_size
from hellm_pyg.nn.spmm import spmm


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
        edge_index = data['user', 'interacts', 'item'].edge_index
        if isinstance(edge_index, EdgeIndex):
            edge_index = edge_index.as_tensor()
        self.edge_index = edge_index

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
                "'edge_index'); call fit(data) with the training data first"
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

    The history :math:`\mathcal{H}_u` is read from the batch, hence may hold
    items (the validation item, a new user's items) that the similarities have
    not seen. Items similar to none get exactly 0. The item-item matrix is
    never built: scores are products with the incidence matrix and its
    transpose, a block of rows at a time.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        block_size: Number of rows scored at a time; memory is
            :math:`(U + I)` double numbers a row.

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
            The 0/1 matrix of training interactions and its transpose, CSR of
            shapes [U, I] and [I, U], and the inverse root of each item's
            count [I], 0 for an item that nobody has.
        """
        self._check_fitted(data)
        edge_index = coalesce(self.edge_index)
        shape = (self.num_users, self.num_items)
        count = edge_index[1].bincount(minlength=self.num_items).double()
        scale = count.rsqrt().masked_fill(count == 0, 0.0)
        return (
            _incidence(edge_index, shape),
            _incidence(coalesce(edge_index.flip(0)), shape[::-1]),
            scale,
        )

    def score(
        self, encoded: tuple[Tensor, Tensor, Tensor], batch: SequenceBatch
    ) -> Tensor:
        """Returns the scores [B, I] of the rows' histories."""
        users, items, scale = encoded
        out = []
        for start in range(0, batch.batch_size, self.block_size):
            stop = min(start + self.block_size, batch.batch_size)
            inside = (batch.batch >= start) & (batch.batch < stop)
            item, row = batch.item[inside], batch.batch[inside] - start
            history = scale.new_zeros(self.num_items, stop - start)
            history.index_put_((item, row), scale[item], accumulate=True)
            shared = spmm(users, items, history)
            score = spmm(items, users, shared) * scale.unsqueeze(1)
            # Take each history item's similarity to itself, 1, off again.
            own = -(scale[item] > 0).double()
            score.index_put_((item, row), own, accumulate=True)
            # The smallest true score is 1 over the largest count; below lies
            # the rounding of that subtraction, which would break ties at 0.
            out.append(score.masked_fill(score < 1e-9, 0.0).t().float())
        return torch.cat(out) if out else scale.new_zeros(0, self.num_items).float()


def _incidence(edge_index: Tensor, size: tuple[int, ...]) -> Tensor:
    rowptr = edge_index.new_zeros(size[0] + 1)
    rowptr[1:] = edge_index[0].bincount(minlength=size[0]).cumsum(0)
    value = torch.ones(edge_index.size(1), dtype=torch.double, device=edge_index.device)
    return torch.sparse_csr_tensor(rowptr, edge_index[1], value, size)
