"""Attention with graph prefix slots, registered with transformers by name."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from hellm_pyg.llm.prefix_slots import SlotFactors, project_slots, slot_logit
from hellm_pyg.llm.prefix_states import PrefixStates

NAME = 'graph_prefix'

# Keys up to which matrix products beat torch's fused kernel on a CPU, several
# times so in a backward pass in bf16.
SHORT = 128

# Keywords of layers whose logits are not plain products.
SPECIAL = ('softcap', 'position_bias', 's_aux')

# Post-rotary keys and values of tokens, a pair a layer.
LayerKeyValues = list[tuple[Tensor, Tensor]]


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
        rows, factors = project_slots(module, layer, prefix, query, dtype)
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
    factors: tuple[SlotFactors, SlotFactors] | None,
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
        slot = slot_logit(logit[..., :P], heads, scaling, *factors[0])
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


def graph_prefix_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Builds the causal mask of ``'graph_prefix'``, and never leaves it out.

    transformers leaves out a mask where it takes the kernel to be causal by
    itself, which attention over a prefix is not.
    """
    kwargs |= {'allow_is_causal_skip': False, 'allow_is_bidirectional_skip': False}
    return cast(Tensor, sdpa_mask(*args, **kwargs))


AttentionInterface.register(NAME, graph_prefix_attention)
AttentionMaskInterface.register(NAME, graph_prefix_mask)
