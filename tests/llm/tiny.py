"""Language models of a few thousand weights, built from their configurations."""

from __future__ import annotations

import torch
from transformers import (
    AutoModel,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.llm import GraphPrefix, LLMRecommender, Prompt, prefix_attention

KINDS = ('llama', 'qwen2', 'mistral')
NUM_ITEMS = 20
LORA = {
    'r': 2,
    'lora_alpha': 4,
    'lora_dropout': 0.0,
    'target_modules': ['gate_proj', 'up_proj', 'down_proj'],
}


def tiny_config(kind: str = 'llama', num_layers: int = 2) -> PretrainedConfig:
    sizes = {
        'vocab_size': 32,
        'hidden_size': 16,
        'intermediate_size': 24,
        'num_hidden_layers': num_layers,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'max_position_embeddings': 128,
    }
    return {
        'llama': LlamaConfig,
        'qwen2': Qwen2Config,
        'mistral': MistralConfig,
    }[kind](**sizes)


def tiny_llm(
    kind: str = 'llama', num_layers: int = 2, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    torch.manual_seed(0)
    llm = AutoModel.from_config(
        tiny_config(kind, num_layers), attn_implementation=prefix_attention.NAME
    )
    for parameter in llm.parameters():  # 1-D: gains and biases that do something
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return llm.to(dtype).eval()


def tables(num_items: int = NUM_ITEMS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        'graph': torch.randn(num_items, 4, generator=generator),
        'seq': torch.randn(num_items, 6, generator=generator),
    }


def recommender(
    kind: str = 'llama',
    prefix: dict | None = None,
    scope: str = 'causal',
    dtype: torch.dtype = torch.float32,
    lora: dict | None = LORA,
    num_layers: int = 2,
    llm: PreTrainedModel | None = None,
    **kwargs,
) -> LLMRecommender:
    """A recommender whose LoRA and gate do something; ``prefix={}`` adds one."""
    llm = tiny_llm(kind, num_layers, dtype) if llm is None else llm
    torch.manual_seed(2)
    module = None
    if prefix is not None:
        module = GraphPrefix(
            **{
                'channels': 4,
                'hidden_size': 16,
                'num_layers': num_layers,
                'num_tokens': 3,
                'scope': scope,
                'dropout': 0.0,
                **prefix,
            }
        )
    model = LLMRecommender(
        llm,
        Prompt((1, 5, 9, 2), (1, 7, 3)),
        kwargs.pop('item_embeddings', tables()),
        module,
        scope=scope,
        lora=lora,
        **kwargs,
    )
    for name, parameter in model.named_parameters():
        if 'lora_B' in name or 'layer_gate' in name or name == 'head.bias':
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch_of(*histories: list[int], target: list[int] | None = None) -> SequenceBatch:
    """A batch of rows with the given items."""
    return SequenceBatch(
        user=torch.arange(len(histories)),
        item=torch.tensor([i for row in histories for i in row], dtype=torch.long),
        batch=torch.tensor(
            [b for b, row in enumerate(histories) for _ in row], dtype=torch.long
        ),
        target=None if target is None else torch.tensor(target),
    )
