"""Scores against an item table without holding a row of logits a target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _slices(num_rows: int, chunk_size: int) -> list[slice]:
    return [slice(i, i + chunk_size) for i in range(0, num_rows, chunk_size)]


def _check(x: Tensor, table: Tensor, name: str, index: Tensor, chunk_size: int) -> None:
    if x.dim() != 2 or table.dim() != 2 or x.size(1) != table.size(1):
        raise ValueError(
            "'x' and 'table' must be matrices of the same width "
            f'(got {list(x.shape)} and {list(table.shape)})'
        )
    if index.size(0) != x.size(0):
        raise ValueError(
            f"'{name}' must have one entry a row of 'x' "
            f'(got {index.size(0)} for {x.size(0)} rows)'
        )
    if chunk_size < 1:
        raise ValueError(f"'chunk_size' must be positive (got {chunk_size})")


class _TableCrossEntropy(torch.autograd.Function):
    # The gradient of a chunk is taken while its logits are still there, so
    # nothing is recomputed and nothing wider than the inputs is kept.
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, target: Tensor, chunk_size: int
    ) -> Tensor:
        loss = torch.zeros((), dtype=torch.float64, device=x.device)
        need_grad = any(ctx.needs_input_grad[:2])
        grad_x = torch.empty_like(x)
        grad_table = torch.zeros_like(table)
        for rows in _slices(x.size(0), chunk_size):
            part, label = x[rows], target[rows]
            logits = part @ table.t()
            if logits.dtype in (torch.float16, torch.bfloat16):
                logits = logits.float()
            positive = logits.gather(1, label.unsqueeze(1))
            top = logits.amax(dim=1, keepdim=True)
            weight = logits.sub_(top).exp_()
            total = weight.sum(dim=1, keepdim=True)
            loss += (total.log() + top - positive).sum(dtype=torch.float64)
            if need_grad:
                weight, total = weight.to(table.dtype), total.to(table.dtype)
                grad_x[rows] = (weight @ table) / total - table[label]
                grad_table += weight.t() @ (part / total)
                grad_table.index_add_(0, label, -part)
        if need_grad:
            ctx.save_for_backward(grad_x, grad_table)
        count = max(x.size(0), 1)
        ctx.count = count
        return (loss / count).to(torch.promote_types(x.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_table = ctx.saved_tensors
        scale = grad / ctx.count
        return (
            grad_x * scale.to(grad_x.dtype),
            grad_table * scale.to(grad_table.dtype),
            None,
            None,
        )


def table_cross_entropy(
    x: Tensor, table: Tensor, target: Tensor, chunk_size: int = 128
) -> Tensor:
    r"""Cross-entropy over all rows of a table, in chunks of the targets.

    .. math::
        -\frac{1}{T} \sum_{t=1}^{T} \log \frac
        {\exp(\mathbf{x}_t^{\top} \mathbf{e}_{y_t})}
        {\sum_{i=1}^{I} \exp(\mathbf{x}_t^{\top} \mathbf{e}_i)}

    Gradients are computed chunk by chunk in the forward pass: the memory is
    that of ``chunk_size`` rows of logits, whatever :math:`T`. The result can
    be differentiated once.

    Args:
        x: Query vectors, float of shape :math:`[T, D]`.
        table: Item vectors, :math:`[I, D]`.
        target: Row of the table that is right, int64 of shape :math:`[T]`.
        chunk_size: Number of targets scored at a time.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _check(x, table, 'target', target, chunk_size)
    return _TableCrossEntropy.apply(x.to(table.dtype), table, target, chunk_size)


class _CandidateScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, candidate: Tensor, chunk_size: int
    ) -> Tensor:
        ctx.save_for_backward(x, table, candidate)
        ctx.chunk_size = chunk_size
        out = x.new_empty(candidate.shape)
        for rows in _slices(x.size(0), chunk_size):
            out[rows] = torch.bmm(table[candidate[rows]], x[rows].unsqueeze(2))[..., 0]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, table, candidate = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_table = torch.zeros_like(table)
        for rows in _slices(x.size(0), ctx.chunk_size):
            index, part = candidate[rows], grad[rows].to(x.dtype)
            grad_x[rows] = torch.bmm(part.unsqueeze(1), table[index])[:, 0]
            outer = part.unsqueeze(2) * x[rows].unsqueeze(1)
            grad_table.index_add_(0, index.flatten(), outer.flatten(0, 1))
        return grad_x, grad_table, None, None


def candidate_scores(
    x: Tensor, table: Tensor, candidate: Tensor, chunk_size: int = 128
) -> Tensor:
    r"""Inner products with a few rows of a table each.

    .. math::
        s_{t,k} = \mathbf{x}_t^{\top} \mathbf{e}_{c_{t,k}}

    The gathered vectors, :math:`[T, n, D]`, are built in chunks and gathered
    again in the backward pass instead of being kept.

    Args:
        x: Query vectors, float of shape :math:`[T, D]`.
        table: Item vectors, :math:`[I, D]`.
        candidate: Rows of the table, int64 of shape :math:`[T, n]`.
        chunk_size: Number of queries handled at a time.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _check(x, table, 'candidate', candidate, chunk_size)
    if candidate.dim() != 2:
        raise ValueError(
            f"'candidate' must be a matrix (got shape {list(candidate.shape)})"
        )
    return _CandidateScores.apply(x.to(table.dtype), table, candidate, chunk_size)
