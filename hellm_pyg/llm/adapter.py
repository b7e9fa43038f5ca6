"""A frozen backbone, with or without LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from hellm_pyg.llm import prefix_attention

HALF = (torch.bfloat16, torch.float16)


def base_model(llm: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the language model inside an adapter."""
    if isinstance(llm, PeftModel):
        return cast(PreTrainedModel, llm.get_base_model())
    return llm


def adapt(
    llm: PreTrainedModel | PeftModel, lora: Mapping[str, Any] | None
) -> PreTrainedModel | PeftModel:
    """Freezes a backbone, lets it attend to prefixes and adds LoRA.

    Args:
        llm: A backbone, or one that has an adapter.
        lora: Arguments of :class:`peft.LoraConfig`; :obj:`None` adds nothing.

    Raises:
        ValueError: If there would be two adapters, or PEFT cannot build this one.
    """
    base = base_model(llm)
    if base.config._attn_implementation != prefix_attention.NAME:
        base.set_attn_implementation(prefix_attention.NAME)
    if isinstance(llm, PeftModel):
        if lora is not None:
            raise ValueError(
                "'lora' needs an 'llm' without an adapter (got a PeftModel); give one "
                'of the two'
            )
        return _without_casts(llm)
    llm.requires_grad_(False)
    if lora is None:
        return llm
    try:
        adapted = get_peft_model(llm, LoraConfig(**lora))
    except (TypeError, AttributeError, NotImplementedError) as error:
        # PEFT checks few of its arguments, and stumbles over them in these ways.
        raise ValueError(
            f"'lora' does not fit peft's LoraConfig: {error} (got {dict(lora)})"
        ) from error
    return _without_casts(adapted)


def _without_casts(llm: PeftModel) -> PeftModel:
    # A half-precision backbone runs under autocast, which brings adapter and input
    # together by itself; casting the input to fp32 first would only take time.
    if base_model(llm).dtype in HALF:
        for module in llm.modules():
            if isinstance(module, BaseTunerLayer):
                setattr(module, 'cast_input_dtype_enabled', False)  # noqa: B010
    return llm


@contextmanager
def without_checkpointing(llm: nn.Module) -> Iterator[None]:
    """Keeps the activations of the block even where layers are recomputed."""
    modules = [m for m in llm.modules() if getattr(m, 'gradient_checkpointing', False)]
    for module in modules:
        setattr(module, 'gradient_checkpointing', False)  # noqa: B010
    try:
        yield
    finally:
        for module in modules:
            setattr(module, 'gradient_checkpointing', True)  # noqa: B010
