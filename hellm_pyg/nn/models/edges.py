"""Dot products on edges and weighted sums over them, without gathered copies."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hellm_pyg.nn.spmm import product


class Edges(NamedTuple):
    """Edges of a bipartite graph in the order of their rows.

    Args:
        row: Row of each edge, ascending, int64 of shape [E].
        col: Column of each edge, [E].
        ptr: First edge of each row and the end, [R + 1].
        order: Edges in the order of their columns, [E].
        t_row: Row of each of these, [E].
        t_ptr: First of these of each column and the end, [C + 1].
    """

    row: Tensor
    col: Tensor
    ptr: Tensor
    order: Tensor
    t_row: Tensor
    t_ptr: Tensor

    @classmethod
    def from_pairs(cls, pairs: Tensor, num_rows: int, num_cols: int) -> Edges:
        """Builds the index from edges [2, E], distinct and sorted by row."""
        row, col = pairs
        order = col.argsort(stable=True)
        ends = _pointer(row, num_rows), _pointer(col, num_cols)
        return cls(row, col, ends[0], order, row[order], ends[1])

    def matrix(self, weight: Tensor, transpose: bool = False) -> Tensor:
        """Returns weights as a torch CSR tensor [R, C], or [C, R]."""
        ptr, col, columns = self.ptr, self.col, self.t_ptr.numel() - 1
        if transpose:
            ptr, col, columns = self.t_ptr, self.t_row, self.ptr.numel() - 1
            weight = weight[self.order]
        size = (ptr.numel() - 1, columns)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*Sparse CSR tensor support.*')
            return torch.sparse_csr_tensor(
                ptr, col, weight, size, check_invariants=False
            )

    def sum(self, weight: Tensor, x: Tensor, transpose: bool = False) -> Tensor:
        r"""Sums weighted rows over the edges.

        .. math::
            \mathbf{y}_r = \sum_{(r, c)} w_{rc} \, \mathbf{x}_c

        Args:
            weight: Weight of each edge, :math:`[E]`.
            x: Vectors of the columns, :math:`[C, D]`; of the rows if transposed.
            transpose: Whether sums go from rows to columns.
        """
        return _Sum.apply(self, weight, x, transpose)

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Returns the inner product of each edge's ends, :math:`[E]`.

        Args:
            x: Vectors of the rows, :math:`[R, D]`.
            y: Vectors of the columns, :math:`[C, D]`.
        """
        dtype = torch.promote_types(x.dtype, y.dtype)
        return _Dot.apply(self, x.to(dtype), y.to(dtype))


def _pointer(index: Tensor, size: int) -> Tensor:
    count = index.bincount(minlength=size)
    return torch.cat([count.new_zeros(1), count.cumsum(0)])


def _products(edges: Edges, x: Tensor, y: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    pattern = edges.matrix(x.new_zeros(edges.row.numel(), dtype=dtype))
    ends = x.to(dtype), y.to(dtype).t()
    return torch.sparse.sampled_addmm(pattern, *ends, beta=0.0).values().to(x.dtype)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, edges: Edges, weight: Tensor, x: Tensor, transpose: bool
    ) -> Tensor:
        ctx.save_for_backward(weight, x)
        ctx.edges, ctx.transpose = edges, transpose
        return product(edges.matrix(weight, transpose), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        grad_weight = grad_x = None
        if ctx.needs_input_grad[1]:
            ends = (x, grad) if ctx.transpose else (grad, x)
            grad_weight = ctx.edges.dot(*ends).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_x = ctx.edges.sum(weight, grad, not ctx.transpose).to(x.dtype)
        return None, grad_weight, grad_x, None


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Edges, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.edges = edges
        return _products(edges, x, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        grad_x = grad_y = None
        if ctx.needs_input_grad[1]:
            grad_x = ctx.edges.sum(grad, y).to(x.dtype)
        if ctx.needs_input_grad[2]:
            grad_y = ctx.edges.sum(grad, x, transpose=True).to(y.dtype)
        return None, grad_x, grad_y
