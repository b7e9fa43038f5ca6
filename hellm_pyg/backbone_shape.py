"""The sizes of a language model, known before it is there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hellm_pyg.checkpoint import load_json
from hellm_pyg.config import LLMConfig, parse


@dataclass(frozen=True)
class BackboneShape:
    """The sizes of a LLaMA-like language model.

    Args:
        hidden_size: Width :math:`H`.
        num_layers: Layers :math:`L`.
        num_heads: Query heads.
        num_key_value_heads: Key and value heads.
        head_dim: Width of a head.
        intermediate_size: Inner width of the feed-forward part.
        vocab_size: Tokens.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> BackboneShape:
        """Reads the ``config.json`` of transformers."""
        heads, hidden = config['num_attention_heads'], config['hidden_size']
        return cls(
            hidden,
            config['num_hidden_layers'],
            heads,
            config.get('num_key_value_heads') or heads,
            config.get('head_dim') or hidden // heads,
            config['intermediate_size'],
            config['vocab_size'],
        )

    def reshaped(self, shape: Mapping[str, int]) -> BackboneShape:
        """Takes other sizes, as ``llm.shape`` gives them.

        Raises:
            ValueError: If they do not fit together.
        """
        from hellm_pyg.llm.random_backbone import completed_shape

        sizes = completed_shape(shape)
        heads = sizes.pop('num_attention_heads', self.num_heads)
        return replace(self, num_heads=heads, **sizes)

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """Input and output width of the linear maps of a layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query = self.num_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        return {
            'q_proj': (hidden, query),
            'k_proj': (hidden, key),
            'v_proj': (hidden, key),
            'o_proj': (query, hidden),
            'gate_proj': (hidden, inner),
            'up_proj': (hidden, inner),
            'down_proj': (inner, hidden),
        }

    @property
    def num_linear(self) -> int:
        """Weights of all layers' linear maps."""
        return self.num_layers * sum(a * b for a, b in self.maps.values())

    @property
    def num_other(self) -> int:
        """Token embeddings and norms (no language-model head)."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return self.vocab_size * self.hidden_size + norms


# Maps of a layer's attention; the others are those of its feed-forward part.
ATTENTION = ('q_proj', 'k_proj', 'v_proj', 'o_proj')

KNOWN = {
    'SmolLM2-135M-Instruct': BackboneShape(576, 30, 9, 3, 64, 1536, 49152),
    'meta-llama/Llama-2-7b-hf': BackboneShape(4096, 32, 32, 32, 128, 11008, 32000),
    'meta-llama/Llama-3.2-1B': BackboneShape(2048, 16, 32, 8, 64, 8192, 128256),
}


def backbone_shape(
    name: str, num_layers: int | None = None, sizes: Mapping[str, int] | None = None
) -> BackboneShape:
    """Finds the sizes of a backbone: known, in a folder, or on the hub.

    Args:
        name: Hub name or folder.
        num_layers: Number of layers, if it is another one.
        sizes: Other sizes, as ``llm.shape`` gives them.

    Raises:
        ValueError: If there is no such model, or it has fewer layers.
    """
    shape = None if Path(name).is_dir() else KNOWN.get(name)
    if shape is None:
        path = Path(name) / 'config.json'
        if not path.is_file():
            path = _hub_config(name)
        try:
            shape = BackboneShape.from_dict(load_json(path, dict))
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(
                f"'llm.name' needs a LLaMA-like model, whose configuration gives its "
                f'sizes (got {name!r}: {error!r})'
            ) from None
    if num_layers is not None and not 1 <= num_layers <= shape.num_layers:
        raise ValueError(
            f"'llm.num_layers' needs to be from 1 to {shape.num_layers} of {name!r} "
            f'(got {num_layers})'
        )
    shape = replace(shape, num_layers=num_layers or shape.num_layers)
    return shape.reshaped(sizes or {})


def _hub_config(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, 'config.json'))
    except Exception as error:
        # Offline, gated, unknown and misspelt names all end here.
        raise ValueError(
            f"'llm.name' is neither a known model, a folder, nor on the hub (got "
            f'{name!r}): {type(error).__name__}'
        ) from None


def lora_parameters(llm: LLMConfig, shape: BackboneShape) -> int:
    """Returns the number of LoRA's weights."""
    rank = parse((llm.lora or {}).get('r', 8), int, 'llm.lora.r', 'LoraConfig')
    if rank < 1:
        raise ValueError(f"'llm.lora.r' needs to be at least 1 (got {rank})")
    maps = [
        m for layer in range(shape.num_layers) for m in lora_maps(llm, shape, layer)
    ]
    return sum(rank * (a + b) for a, b in maps)


def lora_maps(
    llm: LLMConfig, shape: BackboneShape, layer: int
) -> list[tuple[int, int]]:
    """Returns input and output width of the maps of a layer that LoRA adapts.

    They are those that PEFT finds: a list holds ends of full names, as
    ``layers.0.self_attn.q_proj`` is one, a text is a regular expression for all of it.
    """
    if llm.lora is None:
        return []
    given, key = llm.lora.get('target_modules'), 'llm.lora.target_modules'
    targets = parse(given, list[str] | str | None, key, 'LoraConfig')
    targets = targets or ['q_proj', 'v_proj']
    try:
        pattern = re.compile(targets if isinstance(targets, str) else '')
    except re.error as error:
        raise ValueError(
            f"'{key}' needs to be names, 'all-linear' or a regular expression (got "
            f'{targets!r}): {error}'
        ) from None

    def is_adapted(name: str) -> bool:
        full = f'layers.{layer}.{"self_attn" if name in ATTENTION else "mlp"}.{name}'
        if targets == 'all-linear':
            return True
        if isinstance(targets, str):
            return pattern.fullmatch(full) is not None
        return any(f'.{full}'.endswith(f'.{target}') for target in targets)

    return [widths for name, widths in shape.maps.items() if is_adapted(name)]
