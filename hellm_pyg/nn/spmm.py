"""Sparse times dense, with the transpose at hand for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def spmm(matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
    r"""Multiplies a constant sparse matrix with dense features.

    .. math::
        \mathbf{Y} = \mathbf{A} \mathbf{X}, \qquad
        \frac{\partial \mathcal{L}}{\partial \mathbf{X}} =
        \mathbf{A}^{\top} \frac{\partial \mathcal{L}}{\partial \mathbf{Y}}

    :func:`torch.sparse.mm` transposes the matrix in each backward pass. Here
    both directions are given, so that forward and backward are one product of
    a CSR matrix each. The product is computed in the wider of the two data
    types, in 32 bits at least, also under autocast, and returned in that of
    :obj:`x`.

    Args:
        matrix: The constant matrix :math:`\mathbf{A}`, a torch CSR tensor of
            shape :math:`[N, M]`.
        transposed: Its transpose, a torch CSR tensor of shape :math:`[M, N]`;
            :obj:`matrix` itself if it is symmetric.
        x: Dense features of shape :math:`[M, F]`.

    Returns:
        Features of shape :math:`[N, F]`.

    Raises:
        ValueError: If a matrix is not CSR or requires gradients, or if the
            shapes do not fit.
    """
    for name, value in (('matrix', matrix), ('transposed', transposed)):
        if value.layout != torch.sparse_csr:
            raise ValueError(
                f"'{name}' needs to be a torch CSR tensor (got {value.layout}); "
                f"convert it once by '.to_sparse_csr()'"
            )
        if value.requires_grad:
            raise ValueError(
                f"'{name}' needs to be a constant (got requires_grad=True); scale "
                f"'x' or the output to learn weights"
            )
    if transposed.shape != matrix.shape[::-1]:
        raise ValueError(
            f"'transposed' needs to have shape {list(matrix.shape[::-1])}, as the "
            f'transpose of the matrix (got {list(transposed.shape)})'
        )
    if x.dim() != 2 or x.size(0) != matrix.size(1) or not x.is_floating_point():
        raise ValueError(
            f"'x' needs to hold floats of shape [{matrix.size(1)}, F] "
            f'(got {x.dtype} of shape {list(x.shape)})'
        )
    return _SpMM.apply(matrix, transposed, x)


def product(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiplies without a gradient, in the wider type and 32 bits at least.

    Args:
        matrix: A torch CSR tensor of shape :math:`[N, M]`.
        x: Dense features of shape :math:`[M, F]`.

    Returns:
        Features of shape :math:`[N, F]` in the type that was computed in.
    """
    dtype = torch.promote_types(matrix.dtype, x.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False), torch.no_grad():
        matrix, x = matrix.to(dtype), x.to(dtype)
        if x.device.type != 'cpu':
            return torch.sparse.mm(matrix, x)
        if dtype != torch.float32:
            return torch.sparse.mm(matrix, x, 'sum')
        # A row is a bag, and the kernel, which is one for 32 bits, fetches ahead what
        # it is to sum: several times as fast as the other two, with the same bits.
        return F.embedding_bag(
            matrix.col_indices(),
            x.contiguous(),
            matrix.crow_indices(),
            mode='sum',
            per_sample_weights=matrix.values(),
            include_last_offset=True,
        )


class _SpMM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(matrix, transposed)
        return product(matrix, x).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        matrix, transposed = ctx.saved_tensors
        return None, None, _SpMM.apply(transposed, matrix, grad)
