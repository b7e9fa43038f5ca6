"""The language-model recommenders of the paper as lists of parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prompt import Prompt
from hellm_pyg.llm.recommender import LLMRecommender

LORA = {
    'r': 16,
    'lora_alpha': 16,
    'lora_dropout': 0.05,
    'target_modules': ['gate_proj', 'up_proj', 'down_proj'],
}


def hellm(
    llm: PreTrainedModel,
    prompt: Prompt,
    graph: Tensor,
    seq: Tensor,
    prefix: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> LLMRecommender:
    """HeLLM: graph and sequence embeddings in the token, graph prefix, LoRA.

    See `"HeLLM: Multimodal Hypergraph Enhanced LLM Learning for Recommendation"
    <https://arxiv.org/abs/2504.10541>`_.

    Args:
        llm: Backbone without its head.
        prompt: Token ids around the items.
        graph: Item table of the graph model, :math:`[I, d]`.
        seq: Item table of the sequence model, :math:`[I, d']`.
        prefix: Arguments of ``GraphPrefix``.
        kwargs: Further arguments of ``LLMRecommender``.
    """
    slots = GraphPrefix(
        channels=graph.size(1),
        hidden_size=llm.config.hidden_size,
        num_layers=llm.config.num_hidden_layers,
        **{'scope': kwargs.get('scope', 'user'), **(prefix or {})},
    )
    tables = {'graph': graph, 'seq': seq}
    return LLMRecommender(llm, prompt, tables, slots, **{'lora': LORA, **kwargs})


def collm(
    llm: PreTrainedModel, prompt: Prompt, graph: Tensor, **kwargs: Any
) -> LLMRecommender:
    """CoLLM in the paper's setting: LightGCN's item table alone, no prefix.

    See `"CoLLM: Integrating Collaborative Embeddings into Large Language Models
    for Recommendation" <https://arxiv.org/abs/2310.19488>`_, whose own prompt and
    two stages are not followed.
    """
    return LLMRecommender(llm, prompt, {'graph': graph}, **{'lora': LORA, **kwargs})


def llara(
    llm: PreTrainedModel, prompt: Prompt, seq: Tensor, **kwargs: Any
) -> LLMRecommender:
    """LLaRA in the paper's setting: SASRec's item table alone, no prefix.

    See `"LLaRA: Large Language-Recommendation Assistant"
    <https://arxiv.org/abs/2312.02445>`_, whose titles, candidates and curriculum
    are not followed.
    """
    return LLMRecommender(llm, prompt, {'seq': seq}, **{'lora': LORA, **kwargs})


def e4srec(
    llm: PreTrainedModel, prompt: Prompt, seq: Tensor, **kwargs: Any
) -> LLMRecommender:
    """E4SRec: SASRec's item table through one linear layer, trained head.

    See `"E4SRec: An Elegant Effective Efficient Extensible Solution of Large
    Language Models for Sequential Recommendation"
    <https://arxiv.org/abs/2312.02443>`_.
    """
    return llara(llm, prompt, seq, **{'projector_layers': 1, **kwargs})
