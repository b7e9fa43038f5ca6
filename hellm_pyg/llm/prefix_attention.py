"""Attention with graph prefix slots, registered with transformers by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = 'graph_prefix'

# Keys up to which matrix products beat torch's fused kernel on a CPU, several
# times so in a backward pass in bf16.
SHORT = 128

# Keywords of layers whose logits are not plain products.
SPECIAL = ('softcap', 'position_bias', 's_aux')

LayerKeyValues = list[tuple[Tensor, Tensor]]
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


class _Factors(NamedTuple):
    """What makes a position's slots: ``(rows + state) * scale + bias``."""

    state: Tensor  # [B, Hkv, 1, T, d]
    scale: Tensor  # [B, 1, 1, T, P]
    bias: Tensor | None  # [Hkv, 1, 1, d]
    rotation: Rotation | None  # [P, d]


def graph_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefix: PrefixStates | None = None,
    context: LayerKeyValues | None = None,
    record: list[tuple[Tensor, Tensor]] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    r"""Attends to prefix slots, shared tokens and the row's own tokens.

    The logical order of the keys is :math:`[P \mid S \mid T]`. All queries see
    all slots and all shared tokens; own tokens follow ``attention_mask``.
    Slots are not rotated unless the prefix has a ``rotation``, and a norm of the
    layer's keys is not applied to them. They pass through the layer's own
    projections, without adapters.
    Without ``prefix`` and ``context`` this is ordinary attention.

    ``prefix``, ``context`` and ``record`` are given as keywords of the model's
    ``forward``, which hands them down to here.

    Args:
        module: The attention layer, with ``layer_idx``, ``k_proj``, ``v_proj``.
        query: Queries, :math:`[B, H_q, T, d]`.
        key: Keys of the own tokens, :math:`[B, H_{kv}, T, d]`.
        value: Values of the own tokens, shaped alike.
        attention_mask: What a query may see of the own tokens,
            :math:`[B, 1, T, T]`, boolean or additive.
        dropout: Dropout probability of the attention weights.
        scaling: Factor of the logits (default: :math:`1 / \sqrt{d}`).
        prefix: The prefix of the rows or of the positions.
        context: Post-rotary keys and values, :math:`[1, H_{kv}, S, d]`, of
            tokens that stand before every row, a pair a layer.
        record: An empty list, to which each layer appends its post-rotary keys
            and values: the ``context`` of another pass.
        sliding_window: The layer's window, which never hides a slot.
        kwargs: Further keywords of transformers' attention functions.

    Raises:
        ValueError: If the prefix fits neither layer nor batch, or if the
            window is shorter than the sequence.
    """
    layer = cast(int, module.layer_idx)
    if record is not None and len(record) == layer:  # not again when recomputing
        record.append((key, value))
    special = [name for name in SPECIAL if kwargs.get(name) is not None]
    if prefix is not None or context is not None:
        _check(module, attention_mask, key, context, sliding_window, special)
    if attention_mask is None or special:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    keys, values, factors, share = [key], [value], None, None
    if context is not None:
        keys.insert(0, context[layer][0])
        values.insert(0, context[layer][1])
    if prefix is not None:
        rows, factors = _project(module, layer, prefix, query, dtype)
        keys.insert(0, rows[0])
        values.insert(0, rows[1])
        share = None if prefix.share is None else prefix.share[layer]
    query = query.to(dtype)
    key = _concatenate(keys, query.shape[0], dtype)
    value = _concatenate(values, query.shape[0], dtype)
    mask = F.pad(
        attention_mask,
        (key.shape[2] - attention_mask.shape[-1], 0),
        value=attention_mask.dtype == torch.bool,
    )
    short = query.device.type == 'cpu' and key.shape[2] <= SHORT
    if factors is None and share is None and not short:
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout, scaling, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    num_slots = 0 if prefix is None else prefix.num_tokens
    with torch.autocast(query.device.type, enabled=False):
        out = _attend(
            query, key, value, mask, scaling, dropout, num_slots, factors, share
        )
    return out.transpose(1, 2), None


def _check(
    module: torch.nn.Module,
    mask: Tensor | None,
    key: Tensor,
    context: LayerKeyValues | None,
    sliding_window: int | None,
    special: list[str],
) -> None:
    if mask is None:
        raise ValueError(
            f"'attention_mask' is missing (got None); give the model "
            f"attn_implementation='{NAME}', whose mask is always built"
        )
    if special:
        raise ValueError(
            f"'prefix' and 'context' need logits that are plain products (got layers "
            f'with {special} in {type(module).__name__}); use a LLaMA-like model'
        )
    layer, length = cast(int, module.layer_idx), key.shape[2]
    if context is not None:
        if len(context) <= layer or context[layer][0].shape[0] != 1:
            raise ValueError(
                f"'context' needs keys and values of batch size 1 for every layer "
                f'(got {len(context)} layers); record them with the same model'
            )
        length += context[layer][0].shape[2]
    if sliding_window is not None and sliding_window < length:
        raise ValueError(
            f"'sliding_window' of layer {layer} is shorter than the sequence (got "
            f'{sliding_window} < {length} tokens); shorten the histories, or set the '
            'window in the configuration of the model to None'
        )


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    dropout: float,
    P: int,
    factors: tuple[_Factors, _Factors] | None,
    share: Tensor | None,
) -> Tensor:
    """Attention by matrix products, queries grouped by the key head they share."""
    B, Hq, T, d = query.shape
    Hkv, N = key.shape[1:3]
    query = query.reshape(B * Hkv, -1, d)
    bias = _additive(mask, query.dtype).unsqueeze(2).expand(B, Hkv, Hq // Hkv, T, N)
    bias = bias.reshape(B * Hkv, -1, N)
    logit = torch.baddbmm(bias, query, key.flatten(0, 1).mT, alpha=scaling)
    logit = logit.view(B, Hkv, -1, T, N)
    if factors is not None:
        heads = query.view(B, Hkv, -1, T, d)
        slot = _slot_logit(logit[..., :P], heads, scaling, *factors[0])
        logit = torch.cat([slot, logit[..., P:]], dim=-1)
    if share is None:
        weight = _softmax(logit)
    else:
        slot = _softmax(logit[..., :P]) * share.to(logit.dtype)
        weight = torch.cat([slot, _softmax(logit[..., P:])], dim=-1)
    weight = F.dropout(weight, dropout, training=dropout > 0)
    if factors is None:
        return (weight.view(B * Hkv, -1, N) @ value.flatten(0, 1)).view(B, Hq, T, -1)
    slot = weight[..., :P]
    scaled = (slot * factors[1].scale).to(slot.dtype)
    weight = torch.cat([scaled, weight[..., P:]], dim=-1)
    out = (weight.view(B * Hkv, -1, N) @ value.flatten(0, 1)).view(B, Hkv, -1, T, d)
    out = out + scaled.sum(-1, True) * factors[1].state
    if factors[1].bias is not None:
        out = out + slot.sum(-1, True) * factors[1].bias
    return out.view(B, Hq, T, -1)


def _slot_logit(
    logit: Tensor,
    query: Tensor,
    scaling: float,
    state: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    rotation: Rotation | None,
) -> Tensor:
    slot = (logit + scaling * _products(query, state, rotation)) * scale
    if bias is not None:
        slot = slot + scaling * _products(query, bias, rotation)
    return slot.to(logit.dtype)


def _products(query: Tensor, key: Tensor, rotation: Rotation | None) -> Tensor:
    """Queries times a key that all slots share, rotated to each slot's position.

    No key is rotated for each slot: the cosines and sines of a slot weigh the
    elements of two products that all slots share.
    """
    if rotation is None:
        return (query * key).sum(-1, True)
    cos, sin = (part.to(query.dtype) for part in rotation)
    return (query * key) @ cos.mT + (query * _rotate_half(key)) @ sin.mT


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """Rotates the keys of the slots, [..., P, heads, d]."""
    if rotation is None:
        return x
    cos, sin = (part.to(x.dtype).unsqueeze(1) for part in rotation)
    return x * cos + _rotate_half(x) * sin


def _softmax(logit: Tensor) -> Tensor:
    dtype = torch.promote_types(logit.dtype, torch.float32)
    return logit.softmax(-1, dtype=dtype).to(logit.dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    # Half of the least number, so that adding a logit cannot overflow.
    least = torch.finfo(dtype).min / 2
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, least)


def _concatenate(parts: list[Tensor], batch_size: int, dtype: torch.dtype) -> Tensor:
    parts = [part.to(dtype).expand(batch_size, -1, -1, -1) for part in parts]
    return torch.cat(parts, dim=2)


def _project(
    module: torch.nn.Module,
    layer: int,
    prefix: PrefixStates,
    query: Tensor,
    dtype: torch.dtype,
) -> tuple[list[Tensor], tuple[_Factors, _Factors] | None]:
    """Keys and values of a layer's slots, those of single positions in factors."""
    B, _, T, d = query.shape
    if layer >= prefix.num_layers:
        raise ValueError(
            f"'prefix' needs slots for every layer (got {prefix.num_layers} layers, "
            f'none for layer {layer})'
        )
    if prefix.key.shape[0] not in (1, B) or prefix.key.shape[1] not in (1, T):
        raise ValueError(
            f"'prefix' needs one state a row or a position, [{B}, 1 or {T}, H] (got "
            f'{list(prefix.key.shape)})'
        )
    if not (hasattr(module, 'k_proj') and hasattr(module, 'v_proj')):
        raise ValueError(
            "'prefix' needs attention layers with 'k_proj' and 'v_proj', as in LLaMA, "
            f'Mistral and Qwen (got {type(module).__name__})'
        )
    rows, factors = [], []
    for projection, slot, state, scale, rotation in (
        (
            module.k_proj,
            prefix.key_slot,
            prefix.key_state,
            prefix.key_scale,
            prefix.rotation,
        ),
        (
            module.v_proj,
            prefix.value_slot,
            prefix.value_state,
            prefix.value_scale,
            None,
        ),
    ):
        linear, bias = _without_bias(cast(torch.nn.Module, projection))
        row = linear(slot[layer].to(dtype)).to(dtype).unflatten(-1, (-1, d))
        states = linear(state.to(dtype)).to(dtype).unflatten(-1, (-1, d))
        bias = None if bias is None else bias.to(dtype).view(-1, d)
        if state.shape[1] == 1:
            # All queries of a row see the same slots: ordinary keys, then.
            row = (row + states) * scale[layer].mT.unsqueeze(-1)
            row = row.to(dtype) if bias is None else row.to(dtype) + bias
            rows.append(_rotate(row, rotation).transpose(1, 2))
            continue
        rows.append(_rotate(row, rotation).transpose(0, 1).unsqueeze(0))
        bias = None if bias is None else bias[:, None, None]
        states = states.transpose(1, 2).unsqueeze(2)
        scales = scale[layer][:, None, None]
        factors.append(_Factors(states, scales, bias, rotation))
    return rows, (factors[0], factors[1]) if factors else None


def _without_bias(
    projection: torch.nn.Module,
) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """A projection without adapters and without its bias, and the bias."""
    while hasattr(projection, 'base_layer'):
        projection = cast(torch.nn.Module, projection.base_layer)
    bias = cast('Tensor | None', getattr(projection, 'bias', None))
    if bias is None:
        return projection, None
    if type(projection) is torch.nn.Linear:
        # Large biases, as Qwen2's, would swallow the low bits of the product.
        return partial(F.linear, weight=projection.weight), bias
    return lambda x: projection(x) - bias, bias


def graph_prefix_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Builds the causal mask of ``'graph_prefix'``, and never leaves it out.

    transformers leaves out a mask where it takes the kernel to be causal by
    itself, which attention over a prefix is not.
    """
    kwargs |= {'allow_is_causal_skip': False, 'allow_is_bidirectional_skip': False}
    return cast(Tensor, sdpa_mask(*args, **kwargs))


AttentionInterface.register(NAME, graph_prefix_attention)
AttentionMaskInterface.register(NAME, graph_prefix_mask)
