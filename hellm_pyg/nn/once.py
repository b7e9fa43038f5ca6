"""Gradients that have no derivative of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def once(
    name: str, gradients: Callable[..., Gradients], *inputs: Tensor | None
) -> Gradients:
    """Returns gradients that raise if they are differentiated.

    It is what the backward pass of a function ends with that can be differentiated
    once. :func:`~torch.autograd.function.once_differentiable` raises only if the
    output's gradient requires one, too; else the second derivative would lack what
    comes through the inputs, silently.

    Args:
        name: What can be differentiated once, for the message.
        gradients: Computes them of the inputs, without a graph.
        inputs: What it takes: all tensors that the gradients depend on.
    """
    found: Gradients = _Once.apply(name, gradients, *inputs)
    return found


def scaled(scale: Tensor, *tensors: Tensor | None) -> Gradients:
    """The first half of some tensors, gradients computed before, times a factor."""
    return tuple(
        None if grad is None else grad * scale.to(grad.dtype)
        for grad in tensors[: len(tensors) // 2]
    )


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, gradients: Callable[..., Gradients], *inputs: Tensor | None
    ) -> Gradients:
        ctx.name = name
        return gradients(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"'{ctx.name}' can be differentiated only once")
