"""Vectors of unit length in any precision."""

from __future__ import annotations

import torch
from torch import Tensor


def directions(x: Tensor) -> Tensor:
    r"""Divides every row by its length.

    .. math::
        \mathbf{y}_i = \frac{\mathbf{x}_i}{\lVert \mathbf{x}_i \rVert_2}

    A row of zeros has no direction: it stays zero and gets no gradient, also in
    16 bits, where :func:`torch.nn.functional.normalize` divides zero by zero.

    Args:
        x: Vectors, float of shape :math:`[*, D]`.

    Returns:
        Vectors of the shape and type of :obj:`x`, computed in 32 bits at least.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = wide.norm(dim=-1, keepdim=True)
    return (wide / torch.where(norm > 1e-12, norm, torch.inf)).to(x.dtype)
