"""Targets that share their weight with the items that are near them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hellm_pyg.indices import check_indices


class NeighborSmoothing(torch.nn.Module):
    r"""What smoothing the targets along item neighbours adds to a cross-entropy.

    Label smoothing (`"Rethinking the Inception Architecture for Computer Vision"
    <https://arxiv.org/abs/1512.00567>`_, section 7) spreads a share
    :math:`\varepsilon` of a target's weight evenly over all classes. Here it goes
    to the neighbours :math:`n_1(y), \ldots, n_k(y)` of the target, so that items learn
    from those who chose what is like them. What is a neighbour twice, in two
    modalities, gets two shares:

    .. math::
        q_t(i) = (1 - \varepsilon) [i = y_t]
        + \frac{\varepsilon}{k} \sum_{j=1}^{k} [i = n_j(y_t)]

    With the scores :math:`s_{ti} = \mathbf{x}_t^{\top} \mathbf{e}_i + b_i` the
    cross-entropy with :math:`q` is the one with the targets alone and

    .. math::
        \frac{\varepsilon}{T} \sum_{t=1}^{T} \Big( s_{t, y_t} -
        \frac{1}{k} \sum_{j=1}^{k} s_{t, n_j(y_t)} \Big),

    which is what :meth:`forward` returns. It costs as much as :math:`k + 1` scores a
    target.

    Args:
        neighbor (Tensor): The :math:`k` neighbours of every item, int64 of shape
            :math:`[I, k]`. An item that lacks some has itself in their places, which
            leaves it that weight.
        weight (float): The share :math:`\varepsilon`.

    Raises:
        ValueError: If ``neighbor`` is no such matrix or ``weight`` lies outside
            :math:`[0, 1)`.
    """

    neighbor: Tensor

    def __init__(self, neighbor: Tensor, weight: float = 0.2) -> None:
        super().__init__()
        whole = neighbor.dtype in (torch.int64, torch.int32)
        if neighbor.dim() != 2 or neighbor.size(1) < 1 or not whole:
            raise ValueError(
                f"'neighbor' needs the shape [I, k] and integers (got "
                f'{list(neighbor.shape)} of {neighbor.dtype})'
            )
        size = neighbor.size(0)
        if size and not 0 <= int(neighbor.min()) <= int(neighbor.max()) < size:
            raise ValueError(
                f"'neighbor' needs items from 0 to {size - 1} (got from "
                f'{int(neighbor.min())} to {int(neighbor.max())})'
            )
        if not 0 <= weight < 1:
            raise ValueError(f"'weight' needs to lie in [0, 1) (got {weight})")
        self.weight = weight
        self.register_buffer('neighbor', neighbor.long(), persistent=False)

    def forward(
        self, x: Tensor, table: Tensor, target: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Returns what is to be added to the mean cross-entropy, a scalar.

        Args:
            x: Query vectors, float of shape :math:`[T, D]`.
            table: Item vectors, :math:`[I, D]`.
            target: Index of the right item of each query, int64 of shape :math:`[T]`.
            bias: Bias of each item, :math:`[I]`.

        Raises:
            ValueError: If the shapes do not fit, or a target is no item.
        """
        if table.size(0) != self.neighbor.size(0):
            raise ValueError(
                f"'table' needs a row for each of {self.neighbor.size(0)} items (got "
                f'{list(table.shape)})'
            )
        if target.dim() != 1 or x.shape != (target.size(0), table.size(1)):
            raise ValueError(
                f"'x' needs a row for each of 'target', a vector, as wide as the "
                f'table, {table.size(1)} (got {list(x.shape)} for '
                f'{list(target.shape)})'
            )
        if bias is not None and bias.shape != table.shape[:1]:
            raise ValueError(
                f"'bias' needs one entry for each of {table.size(0)} items (got "
                f'{list(bias.shape)})'
            )
        check_indices('target', target, table.size(0), 'items')
        near = self.neighbor[target]
        mean = F.embedding_bag(near, table, mode='mean')
        gap = (x.to(table.dtype) * (table[target] - mean)).sum(dim=1)
        if bias is not None:
            gap = gap + bias[target] - bias[near].mean(dim=1)
        return self.weight * gap.sum() / max(gap.numel(), 1)

    def __repr__(self) -> str:
        size, k = self.neighbor.shape
        return f'{self.__class__.__name__}({size}, k={k}, weight={self.weight})'
