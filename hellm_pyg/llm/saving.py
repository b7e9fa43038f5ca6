"""One folder for all that a fine-tuned recommender is made of."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import HfApi, snapshot_download
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor
from transformers import PreTrainedModel

from hellm_pyg.checkpoint import (
    atomic_folder,
    load_json,
    load_tensors,
    recover_folder,
    save_json,
    save_tensors,
    tensor_hash,
)
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.llm.backbone import load_backbone
from hellm_pyg.llm.card import model_card
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prompt import Prompt

if TYPE_CHECKING:
    from hellm_pyg.llm.recommender import LLMRecommender

FORMAT = 1
WEIGHTS, DESCRIPTION, IDS = 'hellm.safetensors', 'hellm.json', 'ids.json'
ADAPTER = 'adapter_model.safetensors'


def save_pretrained(
    model: LLMRecommender,
    directory: str | Path,
    ids: IdMap | None = None,
    metrics: Mapping[str, Any] | None = None,
    config: Any = None,
    title: str = 'HeLLM recommender',
) -> None:
    """Writes a recommender without its backbone.

    See :meth:`LLMRecommender.save_pretrained`.
    """
    ids = model.ids if ids is None else ids
    if ids is not None and ids.num_items != model.num_items:
        raise ValueError(
            f"'ids' needs to be the id map of the model's {model.num_items} items "
            f'(got {ids})'
        )
    own, adapter = _own_state(model), _adapter_state(model)
    description = {
        'format': FORMAT,
        **_describe(model),
        'fingerprint': None if ids is None else ids.fingerprint,
        'hash': {
            'embeddings': tensor_hash(_tables(own)),
            'weights': tensor_hash(own),
            'adapter': None if adapter is None else tensor_hash(adapter),
        },
        'metrics': None if metrics is None else dict(metrics),
        'config': asdict(config) if is_dataclass(config) else config,
    }
    with atomic_folder(directory) as folder:
        if isinstance(model.llm, PeftModel):
            # 'auto' would look the vocabulary up on the hub.
            model.llm.save_pretrained(str(folder), save_embedding_layers=False)
        save_tensors(folder / WEIGHTS, own)
        save_json(folder / DESCRIPTION, description)
        if ids is not None:
            ids.save(folder / IDS)
        card = model_card(description, metrics, title, source=str(directory))
        (folder / 'README.md').write_text(card, encoding='utf-8')


def load_pretrained(
    cls: type[LLMRecommender],
    directory: str | Path,
    llm: PreTrainedModel | None = None,
    fingerprint: str | None = None,
) -> LLMRecommender:
    """Reads what :func:`save_pretrained` wrote.

    See :meth:`LLMRecommender.from_pretrained`.
    """
    folder = _folder(directory)
    description = load_json(folder / DESCRIPTION)
    found = description.get('format') if isinstance(description, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"'{folder / DESCRIPTION}' has a format that this version does not read "
            f'(got {found!r}, reads {FORMAT})'
        )
    _check_catalogue(folder, description, fingerprint)
    if llm is None:
        backbone = description['backbone']
        llm, _ = load_backbone(
            backbone['name'],
            num_layers=backbone['num_layers'],
            dtype=getattr(torch, backbone['dtype']),
            load_in_4bit=backbone['load_in_4bit'],
        )
    prompt = Prompt(**description['prompt'])
    _check_backbone(llm, prompt, description)
    hashes = description['hash']
    model: PreTrainedModel | PeftModel = llm
    if description['adapter']:
        model = _load_adapter(llm, folder, hashes['adapter'])
    prefix = description['prefix']
    recommender = cls(
        model,
        prompt,
        {name: torch.zeros(shape) for name, shape in description['tables'].items()},
        None if prefix is None else GraphPrefix(**prefix),
        **description['arguments'],
    )
    own = load_tensors(folder / WEIGHTS, expected=_own_state(recommender))
    _check_hash(folder / WEIGHTS, own, hashes['weights'])
    if tensor_hash(_tables(own)) != hashes['embeddings']:
        raise ValueError(f"'{folder / WEIGHTS}' holds other item embeddings than saved")
    recommender.load_state_dict(own, strict=False)
    recommender.ids = IdMap.load(folder / IDS) if (folder / IDS).is_file() else None
    return recommender.eval()
