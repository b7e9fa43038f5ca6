"""What of a backbone is trained: nothing, LoRA beside it, or all of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from hellm_pyg.llm import prefix_attention

logger = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)


def base_model(llm: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the language model inside an adapter."""
    if isinstance(llm, PeftModel):
        return cast(PreTrainedModel, llm.get_base_model())
    return llm


def adapt(
    llm: PreTrainedModel | PeftModel,
    lora: Mapping[str, Any] | None,
    train: bool = False,
) -> PreTrainedModel | PeftModel:
    """Lets a backbone attend to prefixes, and freezes it and adds LoRA, or trains it.

    Args:
        llm: A backbone, or one that has an adapter.
        lora: Arguments of :class:`peft.LoraConfig`; :obj:`None` adds nothing.
        train: Train all of the backbone's weights, in fp32: in half precision most
            steps would be too small to change them.

    Raises:
        ValueError: If there would be two adapters, or one beside trained weights, if
            weights in 4 bits would be trained, or PEFT cannot build the adapter.
    """
    base = base_model(llm)
    if base.config._attn_implementation != prefix_attention.NAME:
        base.set_attn_implementation(prefix_attention.NAME)
    if train:
        if lora is not None or isinstance(llm, PeftModel):
            raise ValueError(
                "'train_backbone' trains all of an 'llm' without an adapter (got "
                f'{type(llm).__name__} and lora={lora}); give one of the two'
            )
        if getattr(base, 'is_quantized', False):
            raise ValueError(
                "'train_backbone' needs an 'llm' whose weights are not quantised (got "
                f'{type(llm).__name__} in 4 bits or alike); load it in bf16'
            )
        for parameter in base.parameters():  # also out of the file that it maps
            parameter.data = parameter.data.to(torch.float32, copy=True)
        return base.requires_grad_(True)
    if isinstance(llm, PeftModel):
        if lora is not None:
            raise ValueError(
                "'lora' needs an 'llm' without an adapter (got a PeftModel); give one "
                'of the two'
            )
        if not any(parameter.requires_grad for parameter in llm.parameters()):
            logger.warning(
                "'llm' has an adapter that is not trained; to train it, load it with "
                'PeftModel.from_pretrained(..., is_trainable=True)'
            )
        return _prepared(llm)
    llm.requires_grad_(False)
    if lora is None:
        return llm
    try:
        adapted = get_peft_model(llm, LoraConfig(**lora))
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        # PEFT checks few of its arguments, and stumbles over them in these ways.
        raise ValueError(
            f"'lora' does not fit peft's LoraConfig: {error} (got {dict(lora)})"
        ) from error
    return _prepared(adapted)


def _prepared(llm: PeftModel) -> PeftModel:
    # PEFT leaves what it trains of the backbone itself, biases or ``modules_to_save``,
    # in half precision.
    for parameter in llm.parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    # A half-precision backbone runs under autocast, which brings adapter and input
    # together by itself; casting the input to fp32 first would only take time.
    if base_model(llm).dtype in HALF:
        for module in llm.modules():
            if isinstance(module, BaseTunerLayer):
                setattr(module, 'cast_input_dtype_enabled', False)  # noqa: B010
    return llm


def num_adapted(llm: PreTrainedModel | PeftModel) -> int:
    """Returns how many layers an adapter is beside; merging takes it away."""
    return sum(isinstance(module, BaseTunerLayer) for module in llm.modules())


def half_precision(llm: PreTrainedModel | PeftModel) -> torch.dtype | None:
    """Returns the type of a backbone that is in half precision."""
    dtype = base_model(llm).dtype
    return dtype if dtype in HALF else None


def arithmetic(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Lets weights in fp32 compute in half precision; in fp32 the caller decides."""
    if dtype not in HALF:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def enable_checkpointing(llm: PreTrainedModel) -> None:
    """Recomputes a backbone's layers in the backward pass."""
    enable = getattr(llm, 'activation_checkpointing_enable', None)
    if enable is None:  # transformers before 5.20
        enable = llm.gradient_checkpointing_enable
    enable({'use_reentrant': False})


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
