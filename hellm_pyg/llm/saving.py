"""One folder for all that a fine-tuned recommender is made of."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from hellm_pyg.checkpoint import atomic_folder, save_json, save_tensors, tensor_hash
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.llm.adapter import num_adapted
from hellm_pyg.llm.card import model_card
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.signature import backbone_signature

if TYPE_CHECKING:
    from hellm_pyg.llm.recommender import LLMRecommender

FORMAT = 1
WEIGHTS, DESCRIPTION, IDS = 'hellm.safetensors', 'hellm.json', 'ids.json'
# A trained backbone, under the names that transformers knows.
BACKBONE, BACKBONE_CONFIG = 'model.safetensors', 'config.json'


def save_pretrained(
    model: LLMRecommender,
    directory: str | Path,
    ids: IdMap | None = None,
    metrics: Mapping[str, Any] | None = None,
    config: Any = None,
    title: str = 'HeLLM recommender',
    source: str | None = None,
) -> None:
    """Writes a recommender, with its backbone only if that was trained.

    See :meth:`LLMRecommender.save_pretrained`.
    """
    ids = model.ids if ids is None else ids
    if ids is not None and ids.num_items != model.num_items:
        raise ValueError(
            f"'ids' needs to be the id map of the model's {model.num_items} items "
            f'(got {ids})'
        )
    if num_adapted(model.llm) != model.num_adapted:
        raise ValueError(
            f"'llm' needs to have the adapter that the model was built with, beside "
            f'{model.num_adapted} layers (got {num_adapted(model.llm)}): save before '
            f'merge_and_unload()'
        )
    own, adapter = own_state(model), _adapter_state(model)
    backbone = model.backbone.state_dict() if model.train_backbone else None
    description = {
        'format': FORMAT,
        **_describe(model),
        'fingerprint': None if ids is None else ids.fingerprint,
        'hash': {
            'embeddings': tensor_hash(item_tables(own)),
            'weights': tensor_hash(own),
            'adapter': None if adapter is None else tensor_hash(adapter),
            'backbone': None if backbone is None else tensor_hash(backbone),
        },
        'metrics': None if metrics is None else dict(metrics),
        'config': _plain(config),
    }
    with atomic_folder(directory) as folder:
        if isinstance(model.llm, PeftModel):
            # 'auto' would look the vocabulary up on the hub.
            model.llm.save_pretrained(str(folder), save_embedding_layers=False)
        if backbone is not None:
            config_of_backbone = copy.deepcopy(model.backbone.config)
            config_of_backbone.dtype = model.dtype
            config_of_backbone.save_pretrained(str(folder))
            save_tensors(folder / BACKBONE, backbone, {'format': 'pt'})
        save_tensors(folder / WEIGHTS, own)
        save_json(folder / DESCRIPTION, description)
        if ids is not None:
            ids.save(folder / IDS)
        card = model_card(description, metrics, title, source or Path(directory).name)
        (folder / 'README.md').write_text(card, encoding='utf-8')


def push(
    model: LLMRecommender,
    repo_id: str,
    api: HfApi | None = None,
    private: bool | None = None,
    commit_message: str = 'Upload recommender',
    **kwargs: Any,
) -> str:
    """Uploads a recommender; see :meth:`LLMRecommender.push_to_hub`."""
    api = HfApi() if api is None else api
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / repo_id
        save_pretrained(model, folder, source=repo_id, **kwargs)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message
        )
    return str(commit)


def _plain(config: Any) -> Any:
    dataclass = is_dataclass(config) and not isinstance(config, type)
    return asdict(config) if dataclass else config


def _describe(model: LLMRecommender) -> dict[str, Any]:
    llm = model.backbone
    return {
        'backbone': {
            'name': llm.name_or_path,
            'num_layers': llm.config.num_hidden_layers,
            'dtype': str(model.dtype).removeprefix('torch.'),
            'load_in_4bit': bool(getattr(llm, 'is_loaded_in_4bit', False)),
            'signature': backbone_signature(llm, model.prompt),
            'weights': model.backbone_hash,
        },
        'prompt': {
            'before': list(model.prompt.before),
            'after': list(model.prompt.after),
        },
        'arguments': {
            'prefix_embedding': model.prefix_embedding,
            'token_embeddings': model.token_embeddings,
            'scope': model.scope,
            'head': model.head.kind,
            'train_embeddings': model.tables.trained,
            'head_channels': model.head.adapter_channels,
            'head_dropout': model.head.dropout,
            'max_len': model.max_len,
            'dropout': model.dropout,
            'projector_layers': model.projector_layers,
            'candidates': model.candidates,
            'table_scale': model.tables.scale,
            'train_backbone': model.train_backbone,
        },
        'tables': {
            name: [model.num_items, width]
            for name, width in model.tables.channels.items()
        },
        'prefix': None if model.prefix is None else _prefix_arguments(model.prefix),
        'adapter': isinstance(model.llm, PeftModel),
    }


def _prefix_arguments(prefix: GraphPrefix) -> dict[str, Any]:
    names = list(inspect.signature(GraphPrefix).parameters)
    return {name: getattr(prefix, name) for name in names}


def own_state(model: LLMRecommender) -> dict[str, Tensor]:
    """All weights but the language model's."""
    state = model.state_dict()
    return {name: state[name] for name in state if not name.startswith('llm.')}


def item_tables(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The item embeddings among :func:`own_state`."""
    return {name: own[name] for name in own if name.startswith('tables.')}


def _adapter_state(model: LLMRecommender) -> dict[str, Tensor] | None:
    if not isinstance(model.llm, PeftModel):
        return None
    return get_peft_model_state_dict(model.llm, save_embedding_layers=False)
