"""A graph prefix as the attention layers read it, its slots never built."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Cosines and sines of positions, each [P, d].
Rotation = tuple[Tensor, Tensor]


@dataclass(eq=False)
class PrefixStates:
    r"""What the attention layers need to know of a graph prefix.

    The slots of layer :math:`l` are never built. With the state :math:`u` of a
    row or of a position, the bias :math:`b_{l,p}` of a slot, and the gain
    :math:`\gamma`, slot :math:`p` has the key

    .. math::
        k_{l,p} = \mathbf{W}_k \frac{\gamma \odot (b_{l,p} + u)}{\rho_{l,p}},
        \qquad
        \rho_{l,p}^2 = \tfrac{1}{H} \left( \lVert b_{l,p} \rVert^2 + \lVert u
        \rVert^2 + 2 \, b_{l,p}^{\top} u \right) + \epsilon

    and likewise a value with states, biases and gain of its own. The products
    with :math:`\gamma` and all :math:`1 / \rho` are taken once, here, for all
    layers, :math:`1 / \rho` in at least single precision.

    Args:
        key: States :math:`u` of the keys, :math:`[B, T, H]` where each
            position has its own (causal), or :math:`[B, 1, H]`. The batch may
            be 1 for a prefix that all rows share.
        value: States of the values, shaped alike.
        key_bias: Biases :math:`b` of the keys, :math:`[L, P, H]`.
        value_bias: Biases of the values, :math:`[L, P, H]`.
        key_gain: Gain :math:`\gamma` of the keys, :math:`[H]`.
        value_gain: Gain of the values, :math:`[H]`.
        gate: A number a layer, :math:`[L]`: the slots get a softmax of their
            own, and their share is scaled by the tanh of it. :obj:`None` for
            one softmax over slots and tokens.
        eps: Added to the mean square, and its lower bound.
        rotation: Cosines and sines of the model's rotary embedding, each
            :math:`[P, d]`, by which the keys of the slots are rotated;
            :obj:`None` leaves all of them at position 0.

    Raises:
        ValueError: If the shapes do not fit together.
    """

    key: Tensor
    value: Tensor
    key_bias: Tensor
    value_bias: Tensor
    key_gain: Tensor
    value_gain: Tensor
    gate: Tensor | None = None
    eps: float = 1e-5
    rotation: Rotation | None = None

    def __post_init__(self) -> None:
        if self.key.dim() != 3 or self.key.shape != self.value.shape:
            raise ValueError(
                f"'key' and 'value' need to have one shape [B, T, H] (got "
                f'{list(self.key.shape)} and {list(self.value.shape)})'
            )
        hidden_size = self.key.shape[-1]
        shape = self.key_bias.shape
        if len(shape) != 3 or shape[2] != hidden_size or shape != self.value_bias.shape:
            raise ValueError(
                f"'key_bias' and 'value_bias' need to have one shape "
                f'[L, P, {hidden_size}] (got {list(shape)} and '
                f'{list(self.value_bias.shape)})'
            )
        if self.rotation is not None and len(self.rotation[0]) != shape[1]:
            raise ValueError(
                f"'rotation' needs a position for each of {shape[1]} slots (got "
                f'{len(self.rotation[0])})'
            )
        # One `unbind` has one backward; indexing has one full gradient a layer.
        self.key_state = self.key * self.key_gain
        self.value_state = self.value * self.value_gain
        self.key_slot = (self.key_bias * self.key_gain).unbind(0)
        self.value_slot = (self.value_bias * self.value_gain).unbind(0)
        self.key_scale = _inverse_rms(self.key, self.key_bias, self.eps).unbind(0)
        self.value_scale = _inverse_rms(self.value, self.value_bias, self.eps).unbind(0)
        self.share = None if self.gate is None else self.gate.tanh().unbind(0)

    @property
    def num_layers(self) -> int:
        """Number of layers :math:`L`."""
        return self.key_bias.shape[0]

    @property
    def num_tokens(self) -> int:
        """Number of slots :math:`P` in each layer."""
        return self.key_bias.shape[1]


def _inverse_rms(state: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Inverse root mean squares of all sums of a state and a bias, [L, B, T, P]."""
    dtype = torch.promote_types(state.dtype, torch.float32)
    with torch.autocast(state.device.type, enabled=False):
        state, bias = state.to(dtype), bias.to(dtype)
        cross = torch.einsum('bth,lph->lbtp', state, bias) * (2 / state.shape[-1])
        square = bias.square().mean(-1)[:, None, None] + cross
        square = square + state.square().mean(-1)[None, :, :, None]
        return (square + eps).clamp(min=eps).rsqrt()
