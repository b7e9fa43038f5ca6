"""Whether the parts of a recommender fit together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from hellm_pyg.llm.adapter import arithmetic, base_model
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prefix_slots import rotate
from hellm_pyg.llm.prompt import Prompt
from hellm_pyg.llm.tables import ItemTables
from hellm_pyg.nn.smoothing import NeighborSmoothing


def check_names(
    tables: Mapping[str, Tensor],
    names: Sequence[str],
    used: Sequence[str],
    trained: Sequence[str],
    scope: str,
    candidates: str,
    max_len: int,
) -> None:
    """Refuses unknown scopes and names of tables that are not there or not read."""
    if scope not in ('user', 'causal'):
        raise ValueError(f"'scope' needs to be 'user' or 'causal' (got {scope!r})")
    if candidates not in ('all', 'unseen'):
        raise ValueError(
            f"'candidates' needs to be 'all' or 'unseen' (got {candidates!r})"
        )
    if max_len < 1:
        raise ValueError(f"'max_len' needs to be at least 1 (got {max_len})")
    if not names:
        raise ValueError("'token_embeddings' needs at least one name (got none)")
    for name in used:
        if name not in tables:
            argument = 'token_embeddings' if name in names else 'prefix_embedding'
            raise ValueError(
                f"'{argument}' names a table that is not there (got {name!r}; there "
                f'are {sorted(tables)})'
            )
    for name in trained:
        if name not in used:
            raise ValueError(
                f"'train_embeddings' names a table that nothing reads (got {name!r}; "
                f'read are {sorted(set(used))})'
            )


def check_smoothing(
    smoothing: NeighborSmoothing | None, num_items: int, candidates: str
) -> None:
    """Refuses neighbours of another catalogue, or such that do not compete."""
    if smoothing is None:
        return
    if smoothing.neighbor.size(0) != num_items:
        raise ValueError(
            f"'smoothing' needs neighbours of {num_items} items (got {smoothing})"
        )
    if candidates != 'all':
        raise ValueError(
            f"'smoothing' gives weight to items that may be seen, which "
            f"candidates='{candidates}' keeps out of the loss (got {smoothing}): set "
            f"candidates='all'"
        )


def check_backbone(llm: PreTrainedModel | PeftModel) -> None:
    """Refuses models with a head, with a foreign adapter, or with other attention."""
    base = base_model(llm)
    kind = type(base).__name__
    if base.get_output_embeddings() is not None:
        raise ValueError(
            f"'llm' needs to be a language model without its head (got {kind}): give "
            f"its '{base.base_model_prefix}'"
        )
    if not hasattr(base.config, 'hidden_size'):
        raise ValueError(
            f"'llm' needs to be a language model (got {kind}, whose configuration has "
            f"no 'hidden_size'): of several modalities give the language model alone"
        )
    if not base._supports_attention_backend:
        raise ValueError(
            f"'llm' needs attention that goes through transformers' AttentionInterface "
            f'(got {kind}): use LLaMA, Mistral, Qwen, Gemma or one like them'
        )
    softcap = getattr(base.config, 'attn_logit_softcapping', None)
    if softcap is not None:
        raise ValueError(
            f"'llm' needs attention whose logits are plain products (got {kind} with "
            f'attn_logit_softcapping={softcap}): use LLaMA, Mistral, Qwen or one like '
            f'them'
        )
    if isinstance(llm, PeftModel):
        if list(llm.peft_config) != ['default']:
            raise ValueError(
                f"'llm' needs one adapter, which is called 'default' (got "
                f'{list(llm.peft_config)})'
            )
        if llm.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"'llm' needs an adapter of its layers (got "
                f'{type(llm.active_peft_config).__name__}, which adds tokens to rows)'
            )
    elif any(isinstance(module, BaseTunerLayer) for module in llm.modules()):
        raise ValueError(
            f"'llm' carries the adapter of another model already (got {kind}): load "
            f'the backbone once more'
        )


@torch.no_grad()
def check_causality(llm: PreTrainedModel | PeftModel) -> None:
    """Refuses backbones in which a position sees what follows it, its target."""
    base = base_model(llm)
    if base.device.type == 'meta':
        return
    # Small, as embeddings are: large ones would outweigh what the layers add.
    shape = (4, base.config.hidden_size)
    x = 0.1 * torch.randn(shape, generator=torch.Generator(), device='cpu')
    rows = torch.stack([x[:3], x[[0, 1, 3]]])
    position = torch.arange(3, device=base.device).expand(2, 3)
    training = [module for module in llm.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with arithmetic(base.device, base.dtype):
            states = llm(
                inputs_embeds=rows.to(base.device, base.dtype),
                attention_mask=torch.ones_like(position),
                position_ids=position,
                use_cache=False,
            ).last_hidden_state
    finally:
        for module in training:
            module.training = True
    first, other = states[:, 0].float()
    if (first - other).norm() > torch.finfo(base.dtype).eps ** 0.75 * first.norm():
        raise ValueError(
            f"'llm' needs causal attention with scope='causal' (got "
            f'{type(base).__name__}, in which positions see those behind them, their '
            f"targets): use a decoder, or scope='user'"
        )


def check_prompt(prompt: Prompt, llm: PreTrainedModel | PeftModel, scope: str) -> None:
    """Refuses tokens that a backbone has no embeddings of."""
    size = llm.config.vocab_size
    ids = (*prompt.before, *(prompt.after if scope == 'user' else ()))
    if not 0 <= min(ids) <= max(ids) < size:
        raise ValueError(
            f"'prompt' needs token ids below the backbone's 'vocab_size', {size} (got "
            f'{min(ids)} to {max(ids)}); shorten the text, or raise the size'
        )


def check_prefix(
    prefix: GraphPrefix,
    llm: PreTrainedModel | PeftModel,
    tables: ItemTables,
    name: str,
    scope: str,
) -> None:
    """Refuses a prefix of another backbone, table or scope."""
    found: dict[str, Any] = {
        'hidden_size': prefix.hidden_size,
        'num_layers': prefix.num_layers,
    }
    wanted: dict[str, Any] = {
        'hidden_size': llm.config.hidden_size,
        'num_layers': llm.config.num_hidden_layers,
    }
    if prefix.pool:
        found |= {'channels': prefix.channels, 'scope': prefix.scope}
        wanted |= {'channels': tables.channels[name], 'scope': scope}
    if found != wanted:
        raise ValueError(f"'prefix' needs {wanted} here (got {found})")
    base = base_model(llm)
    if prefix.rotary and not _rotates_by_halves(base):
        raise ValueError(
            "'rotary' needs a backbone that rotates the halves of whole heads in every "
            f'layer, as LLaMA, Mistral and Qwen do (got {type(base).__name__})'
        )


def _rotates_by_halves(base: Any) -> bool:
    """Whether a backbone rotates keys as :mod:`hellm_pyg.llm.prefix_slots` does."""
    apply = getattr(inspect.getmodule(type(base)), 'apply_rotary_pos_emb', None)
    attention = [layer.self_attn for layer in getattr(base, 'layers', ())]
    if apply is None or not all(getattr(a, 'use_rope', True) for a in attention):
        return False
    try:  # on the CPU, wherever the backbone lies
        x = torch.linspace(-1, 1, 3 * attention[0].head_dim).view(1, 1, 3, -1)
        cos, sin = type(base.rotary_emb)(base.config)(x, torch.arange(3)[None])
        _, key = apply(x, x, cos, sin)
        own = rotate(x[0].transpose(0, 1), (cos[0], sin[0])).transpose(0, 1)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return torch.allclose(key[0], own, atol=1e-5)
