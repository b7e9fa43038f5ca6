"""By what a backbone is told from others."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from hellm_pyg.checkpoint import tensor_hash
from hellm_pyg.llm.prompt import Prompt

# Where PEFT keeps a module that it wraps, and what it puts beside it.
WRAPPED = re.compile(r'\.(base_layer|original_module)(?=\.)')
ADDED = re.compile(r'\.(lora_|modules_to_save\.|trainable_tokens_)')


@torch.no_grad()
def backbone_signature(llm: PreTrainedModel, prompt: Prompt) -> str:
    """Hash of a backbone's norms and of the prompt's embeddings, in bf16.

    They differ between models and stay as they are under 4-bit quantisation. What PEFT
    has put around or beside them, or trains in place (biases), does not count.
    """
    some = {
        WRAPPED.sub('', name): parameter.bfloat16()
        for name, parameter in llm.named_parameters()
        if parameter.dim() == 1
        and not name.endswith('.bias')
        and not ADDED.search(name)
    }
    embedding: Any = llm.get_input_embeddings()
    for wrapper in ('original_module', 'base_layer'):
        embedding = getattr(embedding, wrapper, embedding)
    ids = torch.tensor(prompt.before, device=llm.device)
    return tensor_hash({**some, 'prompt': embedding(ids).bfloat16()})


@torch.no_grad()
def weights_hash(llm: PreTrainedModel | PeftModel) -> str | None:
    """Hash of the first rows of a backbone's matrices, in bf16.

    There is none where the weights are not at hand as they were saved: those that are
    quantised, in fp16, nowhere, or beside an adapter, which may have changed them.
    """
    if (
        isinstance(llm, PeftModel)
        or getattr(llm, 'is_quantized', False)
        or llm.dtype not in (torch.bfloat16, torch.float32)
        or llm.device.type == 'meta'
    ):
        return None
    return tensor_hash(
        {
            name: parameter[0].bfloat16()
            for name, parameter in llm.named_parameters()
            if parameter.dim() == 2
        }
    )
