"""A fine-tuned recommender out of its folder, every part of which is checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import CONFIG_NAME
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER
from torch import Tensor
from transformers import PreTrainedModel

from hellm_pyg.checkpoint import (
    check_entries,
    load_json,
    load_tensors,
    recover_folder,
    tensor_hash,
)
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.llm.adapter import HALF
from hellm_pyg.llm.backbone import load_model
from hellm_pyg.llm.parts import check_backbone
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prompt import Prompt
from hellm_pyg.llm.random_backbone import random_model
from hellm_pyg.llm.saving import (
    BACKBONE,
    BACKBONE_CONFIG,
    DESCRIPTION,
    FORMAT,
    IDS,
    WEIGHTS,
    item_tables,
    own_state,
)
from hellm_pyg.llm.signature import backbone_signature, weights_hash
from hellm_pyg.precision import usable_dtype

if TYPE_CHECKING:
    from hellm_pyg.llm.recommender import LLMRecommender

BuiltT = TypeVar('BuiltT')

# What is read of the description, beside what is for people.
ENTRIES = {
    'backbone': {
        'name': str,
        'num_layers': int,
        'dtype': str,
        'load_in_4bit': bool,
        'signature': str,
    },
    'prompt': dict,
    'arguments': dict,
    'tables': dict,
    'prefix': dict | None,
    'adapter': bool,
    'fingerprint': str | None,
    'hash': {'embeddings': str, 'weights': str, 'adapter': str | None},
}


def load_pretrained(
    cls: type[LLMRecommender],
    directory: str | Path,
    llm: PreTrainedModel | None = None,
    fingerprint: str | None = None,
) -> LLMRecommender:
    """Reads what :func:`~hellm_pyg.llm.saving.save_pretrained` wrote.

    See :meth:`LLMRecommender.from_pretrained`.
    """
    folder = _folder(directory)
    path = folder / DESCRIPTION
    description = load_json(path, {'format': object})
    found = description['format']
    if found != FORMAT:
        raise ValueError(
            f"'{path}' has a format that this version does not read (got {found!r}, "
            f'reads {FORMAT})'
        )
    check_entries(path, description, ENTRIES)
    trained = _is_trained(description)
    if trained:
        check_entries(path, description, {'hash': {'backbone': str}})
    _check_files(folder, description)
    _check_catalogue(folder, description, fingerprint)
    if llm is None:
        llm = _load_backbone(folder, description)
    elif trained:
        raise ValueError(
            f"'llm' needs to be None, for '{folder}' holds a backbone of its own, "
            f'which was trained (got {type(llm).__name__})'
        )
    check_backbone(llm)
    prompt = _build(Prompt, path, description['prompt'])
    _check_backbone(llm, prompt, description)
    backbone_hash = weights_hash(llm)
    hashes = description['hash']
    model: PreTrainedModel | PeftModel = llm
    if description['adapter']:
        model = _load_adapter(llm, folder, hashes['adapter'])
    prefix = description['prefix']
    recommender = _build(
        cls,
        path,
        description['arguments'],
        model,
        prompt,
        {name: torch.zeros(shape) for name, shape in description['tables'].items()},
        None if prefix is None else _build(GraphPrefix, path, prefix),
    )
    own = load_tensors(folder / WEIGHTS, expected=own_state(recommender))
    _check_hash(folder / WEIGHTS, own, hashes['weights'])
    if tensor_hash(item_tables(own)) != hashes['embeddings']:
        raise ValueError(f"'{folder / WEIGHTS}' holds other item embeddings than saved")
    recommender.load_state_dict(own, strict=False)
    if not trained:
        recommender.backbone_hash = backbone_hash
    else:
        dtype = _dtype(description['backbone'])
        recommender.half_dtype = dtype if dtype in HALF else None
    if description['fingerprint'] is not None:
        recommender.ids = IdMap.load(folder / IDS)
    return recommender.to(llm.device).eval()


def _folder(directory: str | Path) -> Path:
    folder = Path(directory)
    if not recover_folder(folder) and str(directory).count('/') == 1:
        try:
            folder = Path(snapshot_download(str(directory)))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'directory' is neither a folder nor on the hub (got '{directory}'): "
                f'{error}'
            ) from error
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"'directory' needs to be a folder that save_pretrained wrote (got "
            f"'{directory}', without {DESCRIPTION})"
        )
    return folder


def _build(
    kind: Callable[..., BuiltT], path: Path, arguments: Mapping[str, Any], *given: Any
) -> BuiltT:
    """Calls a constructor with what a file says, which may be of a later version."""
    try:
        inspect.signature(kind).bind(*given, **arguments)
    except TypeError as error:
        raise ValueError(
            f"'{path}' is damaged or of another version: its arguments of "
            f'{getattr(kind, "__name__", kind)} are not those known here: {error}'
        ) from None
    return kind(*given, **arguments)


def _check_files(folder: Path, description: Mapping[str, Any]) -> None:
    needed = [WEIGHTS]
    needed += [IDS] if description['fingerprint'] is not None else []
    needed += [ADAPTER, CONFIG_NAME] if description['adapter'] else []
    needed += [BACKBONE, BACKBONE_CONFIG] if _is_trained(description) else []
    for name in needed:
        if not (folder / name).is_file():
            raise ValueError(f"'directory' lacks the file {name} (got '{folder}')")


def _check_catalogue(
    folder: Path, description: Mapping[str, Any], fingerprint: str | None
) -> None:
    saved = description['fingerprint']
    if saved is not None and IdMap.load(folder / IDS).fingerprint != saved:
        raise ValueError(
            f"'{folder / IDS}' belongs to another catalogue than the model's weights"
        )
    if fingerprint is None:
        return
    if saved is None:
        raise ValueError(
            f"'fingerprint' cannot be checked: '{folder}' was saved without 'ids'"
        )
    if saved != fingerprint:
        raise ValueError(
            f"'{folder}' was trained on another catalogue: the ids of its users and "
            f"items have the fingerprint {saved[:12]}... (got 'fingerprint' "
            f'{fingerprint[:12]}...); prepare the data that it was trained on'
        )


def _check_backbone(
    llm: PreTrainedModel, prompt: Prompt, description: Mapping[str, Any]
) -> None:
    if isinstance(llm, PeftModel):
        raise ValueError(
            "'llm' needs to be a backbone without an adapter (got a PeftModel)"
        )
    saved = description['backbone']
    layers = llm.config.num_hidden_layers
    hashes = saved.get('weights'), weights_hash(llm)
    if (
        layers != saved['num_layers']
        or max(prompt.before) >= llm.config.vocab_size
        or backbone_signature(llm, prompt) != saved['signature']
        or (None not in hashes and hashes[0] != hashes[1])
    ):
        raise ValueError(
            f"'llm' is another backbone than the first {saved['num_layers']} layers of "
            f"'{saved['name']}' that the model was trained with (got "
            f"{layers} layers of '{llm.name_or_path}')"
        )


def _is_trained(description: Mapping[str, Any]) -> bool:
    """Whether the backbone is part of the folder; none was in earlier versions."""
    return bool(description['arguments'].get('train_backbone'))


def _load_backbone(folder: Path, description: Mapping[str, Any]) -> PreTrainedModel:
    """Loads a trained backbone from the folder, in fp32, another one by its name."""
    saved, path = description['backbone'], folder / BACKBONE
    if not _is_trained(description):
        return load_model(
            saved['name'],
            num_layers=saved['num_layers'],
            dtype=_dtype(saved),
            load_in_4bit=saved['load_in_4bit'],
        )
    llm = random_model(str(folder), dtype=torch.float32)
    state = load_tensors(path, expected=llm.state_dict())
    _check_hash(path, state, description['hash']['backbone'])
    llm.load_state_dict(state)
    llm.config.name_or_path = llm.name_or_path = saved['name']
    return llm


def _dtype(saved: Mapping[str, Any]) -> torch.dtype:
    """The type that was computed in, but bf16 where a CPU would only emulate it."""
    dtype: torch.dtype = getattr(torch, saved['dtype'])
    return dtype if saved['load_in_4bit'] else usable_dtype(dtype)


def _load_adapter(llm: PreTrainedModel, folder: Path, expected_hash: str) -> PeftModel:
    load_json(folder / CONFIG_NAME, dict)  # PEFT reads other JSON, too, and stumbles
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = False
        model = get_peft_model(llm, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{folder / CONFIG_NAME}' is damaged or does not fit the backbone: {error}"
        ) from error
    state = load_tensors(
        folder / ADAPTER,
        expected=get_peft_model_state_dict(model, save_embedding_layers=False),
    )
    _check_hash(folder / ADAPTER, state, expected_hash)
    set_peft_model_state_dict(model, state)
    return model


def _check_hash(path: Path, tensors: Mapping[str, Tensor], expected: str) -> None:
    if tensor_hash(tensors) != expected:
        raise ValueError(
            f"'{path}' is damaged: its content differs from what was saved "
            f'(the hash in {DESCRIPTION})'
        )
