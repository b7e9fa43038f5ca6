"""Scores against an item table without holding a row of logits a target."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hellm_pyg.indices import check_indices
from hellm_pyg.nn.once import Gradients, once, scaled
from hellm_pyg.nn.soft_targets import SoftTargets

# Logits that live at once: 64 MiB in fp32.
CHUNK_ELEMENTS = 2**24
# Items a candidate up to which all of them are scored and the candidates picked.
DENSE_RATIO = 64

# Rows of scores start at multiples of so many: BLAS may write others more slowly
# (``benchmarks/speed/scores.py``).
ALIGNMENT = 16

Pairs = tuple[Tensor, Tensor] | None


def inner_products(x: Tensor, table: Tensor) -> Tensor:
    r"""Scores of all items, :math:`s_{ti} = \mathbf{x}_t^{\top} \mathbf{e}_i`.

    They are computed in 32 bits at least, also under autocast: in bf16 most items would
    tie.

    Args:
        x: Query vectors, float of shape :math:`[T, D]`, or of more dimensions.
        table: Item vectors, :math:`[I, D]`.

    Returns:
        Scores :math:`[T, I]`, the left part of a matrix of :math:`\lceil I / 16 \rceil
        \cdot 16` columns.
    """
    dtype = _precision(x, table)
    with torch.autocast(x.device.type, enabled=False):
        padded = _aligned(table.to(dtype))
        return (x.to(dtype) @ padded.t())[..., : table.size(0)]


def _aligned(table: Tensor) -> Tensor:
    """The table with rows of zeros up to a multiple of ``ALIGNMENT``."""
    missing = -table.size(0) % ALIGNMENT
    return F.pad(table, (0, 0, 0, missing)) if missing else table


def _precision(x: Tensor, table: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, table.dtype), torch.float32)


def _slices(num_rows: int, chunk_size: int) -> list[slice]:
    return [slice(i, i + chunk_size) for i in range(0, num_rows, chunk_size)]


def _check(
    x: Tensor, table: Tensor, name: str, index: Tensor, chunk_size: int, dim: int
) -> None:
    if x.dim() != 2 or table.dim() != 2 or x.size(1) != table.size(1):
        raise ValueError(
            "'x' and 'table' must be matrices of the same width "
            f'(got {list(x.shape)} and {list(table.shape)})'
        )
    if index.dim() != dim or index.size(0) != x.size(0):
        raise ValueError(
            f"'{name}' must be a {('vector', 'matrix')[dim - 1]} with one entry a row "
            f"of 'x' (got {list(index.shape)} for {x.size(0)} rows)"
        )
    check_indices(name, index, table.size(0), "rows of 'table'")
    if chunk_size < 1:
        raise ValueError(f"'chunk_size' must be positive (got {chunk_size})")


def _check_soft(soft: SoftTargets, target: Tensor, hidden: Pairs) -> None:
    if hidden is not None:
        raise ValueError(
            "'soft' gives weight to rows that 'hidden' leaves out (got both): let all "
            "compete (candidates='all'), or train without a teacher"
        )
    if soft.index.shape != target.shape:
        raise ValueError(
            f"'soft' needs one entry a target (got {list(soft.index.shape)} for "
            f'{list(target.shape)})'
        )


def _check_lesson(lesson: Tensor, logits: Tensor) -> None:
    if lesson.shape != logits.shape:
        raise ValueError(
            f"'soft.probability' needs to return {list(logits.shape)}, one of each row "
            f"of 'table' for each target (got {list(lesson.shape)})"
        )


def _check_hidden(row: Tensor, col: Tensor, num_rows: int, num_items: int) -> None:
    check_indices('hidden[0]', row, num_rows, "rows of 'x'")
    check_indices('hidden[1]', col, num_items, "rows of 'table'")
    if row.shape != col.shape or bool((row[1:] < row[:-1]).any()):
        raise ValueError(
            f"'hidden' needs two vectors of the same length, the first ascending (got "
            f'{list(row.shape)} and {list(col.shape)})'
        )


class _TableCrossEntropy(torch.autograd.Function):
    # The gradient of a chunk is taken while its logits are still there, so
    # nothing is recomputed and nothing wider than the inputs is kept.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        table: Tensor,
        bias: Tensor | None,
        target: Tensor,
        hidden: Pairs,
        soft: SoftTargets | None,
        chunk_size: int,
    ) -> Tensor:
        device, dtype = x.device.type, table.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        grads = [
            None if value is None or not needed else torch.zeros_like(value)
            for value, needed in zip(
                (x, table, bias), ctx.needs_input_grad, strict=False
            )
        ]
        loss = torch.zeros((), dtype=torch.float64, device=x.device)
        taught = 0.0 if soft is None else soft.weight
        with torch.autocast(device, enabled=False):
            low, size = table.to(dtype), table.size(0)
            padded = _aligned(table.to(_precision(x, table)))
            for rows in _slices(x.size(0), chunk_size):
                part, label = x[rows], target[rows].unsqueeze(1)
                logits = inner_products(part, padded)[:, :size]
                if bias is not None:
                    logits += bias
                _hide(logits, hidden, rows)
                # The score that the target's distribution expects.
                wanted = (1 - taught) * logits.gather(1, label)
                if soft is not None:
                    lesson = soft[rows].to(logits.dtype)
                    _check_lesson(lesson, logits)
                    wanted += taught * (lesson * logits).sum(dim=1, keepdim=True)
                top = logits.amax(dim=1, keepdim=True)
                share = logits.sub_(top).exp_()
                total = share.sum(dim=1, keepdim=True)
                loss += (total.log() + top - wanted).sum(dtype=torch.float64)
                if not any(grad is not None for grad in grads):
                    continue
                # Softmax minus that distribution: the gradient of the summed loss.
                own = torch.full_like(top, taught - 1)
                share = share.div_(total).scatter_add_(1, label, own)
                if soft is not None:
                    share.sub_(lesson, alpha=taught)
                if grads[2] is not None:
                    grads[2] += share.sum(dim=0).to(grads[2].dtype)
                share = _lower(share, dtype)
                if grads[0] is not None:
                    grads[0][rows] = (share @ low)[: part.size(0)]
                if grads[1] is not None:
                    grads[1] += share.t() @ _lower(part, dtype)
        ctx.save_for_backward(*grads, x, table, bias)
        ctx.count = max(x.size(0), 1)
        return (loss / ctx.count).to(torch.promote_types(x.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        scale, kept = grad_output / ctx.count, ctx.saved_tensors
        grads = once('table_cross_entropy', scaled, scale, *kept)
        return (*grads, None, None, None, None)


def _lower(rows: Tensor, dtype: torch.dtype) -> Tensor:
    # In a lower precision there are zeros up to a multiple of 64 rows: oneDNN
    # compiles a product in bf16 anew for each number of rows that it meets.
    if dtype not in (torch.float16, torch.bfloat16):
        return rows
    out = rows.new_zeros(-(-rows.size(0) // 64) * 64, rows.size(1), dtype=dtype)
    out[: rows.size(0)] = rows
    return out


def _hide(logits: Tensor, hidden: Pairs, rows: slice) -> None:
    if hidden is None:
        return
    row, col = hidden
    ends = torch.tensor([rows.start, rows.start + logits.size(0)], device=row.device)
    start, end = torch.searchsorted(row, ends).tolist()
    logits[row[start:end] - rows.start, col[start:end]] = -torch.inf


def table_cross_entropy(
    x: Tensor,
    table: Tensor,
    target: Tensor,
    chunk_size: int | None = None,
    *,
    bias: Tensor | None = None,
    hidden: Pairs = None,
    soft: SoftTargets | None = None,
) -> Tensor:
    r"""Cross-entropy over all rows of a table, in chunks of the targets.

    .. math::
        -\frac{1}{T} \sum_{t=1}^{T} \log \frac
        {\exp(\mathbf{x}_t^{\top} \mathbf{e}_{y_t} + b_{y_t})}
        {\sum_{i \notin \mathcal{H}_t} \exp(\mathbf{x}_t^{\top} \mathbf{e}_i + b_i)}

    With soft targets it is the one with :math:`(1 - \lambda) [i = y_t] + \lambda
    p_{ti}` in place of the right row alone.

    Gradients are computed chunk by chunk in the forward pass: the memory is
    that of ``chunk_size`` rows of logits and a few copies of the table, whatever
    :math:`T`. Logits and softmax have the table's precision, or fp32 if that is
    lower; the gradients' products run in the table's type, or under autocast in
    its. The result can be differentiated once.

    Args:
        x: Query vectors, float of shape :math:`[T, D]`.
        table: Item vectors, :math:`[I, D]`.
        target: Row of the table that is right, int64 of shape :math:`[T]`.
        chunk_size: Number of targets scored at a time; :obj:`None` for as many
            as keep :math:`2^{24}` logits.
        bias: Bias :math:`b` of each item, :math:`[I]`.
        hidden: Pairs of a query, ascending, and an item that it does not compete
            with, two vectors :math:`[P]`: the sets :math:`\mathcal{H}_t`. A
            target is never hidden.
        soft: What a teacher tells of each target.

    Raises:
        ValueError: If the shapes do not fit, an index is out of range, the rows of
            hidden pairs do not ascend, or there are both hidden and soft ones.
    """
    if chunk_size is None:
        chunk_size = max(1, CHUNK_ELEMENTS // max(1, table.size(0)))
    _check(x, table, 'target', target, chunk_size, dim=1)
    if bias is not None and bias.shape != table.shape[:1]:
        raise ValueError(
            f"'bias' needs one entry a row of 'table' (got {list(bias.shape)} for "
            f'{table.size(0)} rows)'
        )
    x = x.to(table.dtype)
    if soft is not None:
        _check_soft(soft, target, hidden)
    if hidden is not None:
        row, col = hidden
        _check_hidden(row, col, x.size(0), table.size(0))
        kept = col != target[row]
        hidden = row[kept], col[kept]
    if not torch.is_grad_enabled():  # a function's context would still ask for them
        x, table = x.detach(), table.detach()
        bias = None if bias is None else bias.detach()
    return _TableCrossEntropy.apply(x, table, bias, target, hidden, soft, chunk_size)


class _CandidateScores(torch.autograd.Function):
    # A product with the whole table runs at the speed of the machine's arithmetic,
    # gathered rows at that of its memory: with few items a candidate, the product wins.
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, candidate: Tensor, chunk_size: int
    ) -> Tensor:
        ctx.save_for_backward(x, table, candidate)
        ctx.chunk_size = chunk_size
        out = x.new_empty(candidate.shape)
        dense = _is_dense(table, candidate)
        table = _aligned(table) if dense else table
        for rows in _slices(x.size(0), chunk_size):
            part, index = x[rows], candidate[rows]
            if dense:
                out[rows] = inner_products(part, table).gather(1, index)
            else:
                out[rows] = torch.bmm(table[index], part.unsqueeze(2))[..., 0]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        gradients = partial(_candidate_grads, chunk_size=ctx.chunk_size)
        grads = once('candidate_scores', gradients, grad, *ctx.saved_tensors)
        return *grads, None, None


def _candidate_grads(
    grad: Tensor, x: Tensor, table: Tensor, candidate: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty_like(x)
    grad_table = torch.zeros_like(table)
    with torch.autocast(x.device.type, enabled=False):
        for rows in _slices(x.size(0), chunk_size):
            index, part = candidate[rows], grad[rows].to(x.dtype)
            if _is_dense(table, index):
                every = part.new_zeros(index.size(0), table.size(0))
                every.scatter_add_(1, index, part)
                grad_x[rows] = every @ table
                grad_table.addmm_(every.t(), x[rows])
                continue
            grad_x[rows] = torch.bmm(part.unsqueeze(1), table[index])[:, 0]
            outer = part.unsqueeze(2) * x[rows].unsqueeze(1)
            grad_table.index_add_(0, index.flatten(), outer.flatten(0, 1))
    return grad_x, grad_table


def _is_dense(table: Tensor, candidate: Tensor) -> bool:
    return table.size(0) <= DENSE_RATIO * candidate.size(1)


def candidate_scores(
    x: Tensor, table: Tensor, candidate: Tensor, chunk_size: int = 128
) -> Tensor:
    r"""Inner products with a few rows of a table each.

    .. math::
        s_{t,k} = \mathbf{x}_t^{\top} \mathbf{e}_{c_{t,k}}

    Like :func:`inner_products` it computes in 32 bits at least, also under autocast. It
    works in chunks and keeps none of them for the backward pass. A chunk gathers its
    vectors, ``[chunk_size, n, D]``, or, where the table has at most 64 rows a
    candidate, scores the whole table, ``[chunk_size, I]``, and picks.

    Args:
        x: Query vectors, float of shape :math:`[T, D]`.
        table: Item vectors, :math:`[I, D]`.
        candidate: Rows of the table, int64 of shape :math:`[T, n]`.
        chunk_size: Number of queries handled at a time.

    Raises:
        ValueError: If the shapes do not fit, or there is no such candidate.
    """
    _check(x, table, 'candidate', candidate, chunk_size, dim=2)
    dtype = _precision(x, table)
    with torch.autocast(x.device.type, enabled=False):
        return _CandidateScores.apply(
            x.to(dtype), table.to(dtype), candidate, chunk_size
        )
