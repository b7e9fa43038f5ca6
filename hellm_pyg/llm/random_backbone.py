"""Language models that have learnt nothing, of a known shape or another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from hellm_pyg.llm import prefix_attention
from hellm_pyg.llm.backbone import backbone_label, read_config, read_tokenizer


def random_backbone(
    name: str,
    num_layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Makes a language model that has learnt nothing, beside a tokenizer.

    Its weights are drawn as its architecture says.

    Args:
        name: Whose architecture, sizes and tokenizer, as of :func:`load_backbone`.
        num_layers: Number of layers, at most as many as there.
        dtype: Type of the weights.
        shape: Other sizes, as of :func:`completed_shape`.
        seed: Seed of the weights.

    Raises:
        ValueError: If the model cannot be found, has fewer layers, or cannot be of
            that shape.
    """
    model = random_model(name, num_layers, dtype, shape, seed)
    label = backbone_label(name, random=True, shape=shape)
    model.config.name_or_path = model.name_or_path = label
    return model, read_tokenizer(name)


def random_model(
    name: str,
    num_layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Makes a language model as :func:`random_backbone`, without a tokenizer."""
    config = read_config(name, num_layers)
    for key, value in completed_shape(shape or {}).items():
        setattr(config, key, value)
    for special in ('pad_token_id', 'bos_token_id', 'eos_token_id'):
        token: Any = getattr(config, special, None)  # or several
        tokens = token if isinstance(token, list) else [token or 0]
        if max(tokens, default=0) >= config.vocab_size:
            setattr(config, special, None)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return AutoModel.from_config(
            config, dtype=dtype, attn_implementation=prefix_attention.NAME
        )


def completed_shape(shape: Mapping[str, int]) -> dict[str, int]:
    """Checks the sizes of a language model and adds those that follow from them.

    Args:
        shape: ``hidden_size``, ``intermediate_size``, ``num_attention_heads`` and, if
            wanted, ``num_key_value_heads`` (as many as heads, otherwise) and
            ``vocab_size``; or nothing.

    Returns:
        The same with ``num_key_value_heads`` and ``head_dim``.

    Raises:
        ValueError: If a size is missing, unknown, not positive, or does not divide
            another one.
    """
    if not shape:
        return {}
    needed = {'hidden_size', 'intermediate_size', 'num_attention_heads'}
    known = needed | {'num_key_value_heads', 'vocab_size'}
    if not needed <= set(shape) <= known:
        raise ValueError(
            f"'shape' needs {', '.join(sorted(needed))} and may have "
            f'{", ".join(sorted(known - needed))} (got {", ".join(sorted(shape))})'
        )
    if not all(type(size) is int and size >= 1 for size in shape.values()):
        raise ValueError(f"'shape' needs positive integers (got {dict(shape)})")
    heads, hidden = shape['num_attention_heads'], shape['hidden_size']
    sizes = {'num_key_value_heads': heads, **shape}
    if hidden % (2 * heads) or heads % sizes['num_key_value_heads']:
        raise ValueError(
            f"'shape' needs heads of an even width, of which as many share a key and "
            f"value head each: a 'hidden_size' that 2 * 'num_attention_heads' divides, "
            f"and 'num_attention_heads' that 'num_key_value_heads' divides (got "
            f'{dict(shape)})'
        )
    return {**sizes, 'head_dim': hidden // heads}
