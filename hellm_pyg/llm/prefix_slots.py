"""Keys and values of a prefix's slots in one layer, in factors where they differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hellm_pyg.llm.prefix_states import PrefixStates, Rotation


class SlotFactors(NamedTuple):
    """What makes a position's slots: ``(rows + state) * scale + bias``."""

    state: Tensor  # [B, Hkv, 1, T, d]
    scale: Tensor  # [B, 1, 1, T, P]
    bias: Tensor | None  # [Hkv, 1, 1, d]
    rotation: Rotation | None  # [P, d]


def project_slots(
    module: torch.nn.Module,
    layer: int,
    prefix: PrefixStates,
    query: Tensor,
    dtype: torch.dtype,
) -> tuple[list[Tensor], tuple[SlotFactors, SlotFactors] | None]:
    """Keys and values of a layer's slots, those of single positions in factors.

    Args:
        module: The attention layer, whose own projections the slots pass through.
        layer: Its index.
        prefix: The prefix of the rows or of the positions.
        query: Queries of the layer, [B, Hq, T, d].
        dtype: Of what is returned.

    Returns:
        Keys and values, [B or 1, Hkv, P, d]; and where each position has its own
        slots, what makes these of them.

    Raises:
        ValueError: If the prefix fits neither layer nor batch, or an adapter is merged.
    """
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
        merged = getattr(projection, 'merged_adapters', None)
        if merged:
            raise ValueError(
                f"'prefix' has slots, which pass by adapters that are not merged (got "
                f'{type(module).__name__} with {merged} merged into its projections): '
                f'call unmerge_adapter()'
            )
        linear, bias = without_bias(cast(torch.nn.Module, projection))
        row = linear(slot[layer].to(dtype)).to(dtype).unflatten(-1, (-1, d))
        states = linear(state.to(dtype)).to(dtype).unflatten(-1, (-1, d))
        bias = None if bias is None else bias.to(dtype).view(-1, d)
        if state.shape[1] == 1:
            # All queries of a row see the same slots: ordinary keys, then.
            row = (row + states) * scale[layer].mT.unsqueeze(-1)
            row = row.to(dtype) if bias is None else row.to(dtype) + bias
            rows.append(rotate(row, rotation).transpose(1, 2))
            continue
        rows.append(rotate(row, rotation).transpose(0, 1).unsqueeze(0))
        bias = None if bias is None else bias[:, None, None]
        states = states.transpose(1, 2).unsqueeze(2)
        scales = scale[layer][:, None, None]
        factors.append(SlotFactors(states, scales, bias, rotation))
    return rows, (factors[0], factors[1]) if factors else None


def without_bias(
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


def slot_logit(
    logit: Tensor,
    query: Tensor,
    scaling: float,
    state: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    rotation: Rotation | None,
) -> Tensor:
    """Logits of positions' own slots, [B, Hkv, G, T, P].

    Args:
        logit: Products of the queries with what all positions share of the slots,
            times ``scaling``.
        query: Queries, grouped by the key head that they share, [B, Hkv, G, T, d].
        scaling: Factor of the logits.
        state: See :class:`SlotFactors`, as the following.
        scale: What the sum of both products is scaled by.
        bias: The projection's bias, which is not scaled.
        rotation: To the position of each slot.
    """
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


def rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """Rotates the keys of the slots, [..., P, heads, d]."""
    if rotation is None:
        return x
    cos, sin = (part.to(x.dtype).unsqueeze(1) for part in rotation)
    return x * cos + _rotate_half(x) * sin
