"""Whether the parts of a recommender fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from hellm_pyg.llm.adapter import base_model
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prompt import Prompt
from hellm_pyg.llm.tables import ItemTables


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


def check_prompt(prompt: Prompt, llm: PreTrainedModel | PeftModel, scope: str) -> None:
    """Refuses tokens that a backbone has no embeddings of."""
    size = llm.config.vocab_size
    ids = (*prompt.before, *(prompt.after if scope == 'user' else ()))
    if max(ids) >= size:
        raise ValueError(
            f"'prompt' needs token ids below the backbone's 'vocab_size', {size} (got "
            f'{max(ids)}); shorten the text, or raise the size'
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
    if prefix.rotary and not hasattr(base, 'rotary_emb'):
        raise ValueError(
            "'rotary' needs a backbone with one rotary embedding, as LLaMA, Mistral "
            f'and Qwen have (got {type(base).__name__})'
        )
