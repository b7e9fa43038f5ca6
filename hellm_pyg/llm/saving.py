"""One folder for all that a fine-tuned recommender is made of."""

from __future__ import annotations

import copy
import inspect
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import HfApi, snapshot_download
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
    atomic_folder,
    check_entries,
    load_json,
    load_tensors,
    recover_folder,
    save_json,
    save_tensors,
    tensor_hash,
)
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.llm.adapter import HALF, num_adapted
from hellm_pyg.llm.backbone import load_model
from hellm_pyg.llm.card import model_card
from hellm_pyg.llm.parts import check_backbone
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prompt import Prompt
from hellm_pyg.llm.random_backbone import random_model
from hellm_pyg.precision import usable_dtype

if TYPE_CHECKING:
    from hellm_pyg.llm.recommender import LLMRecommender

BuiltT = TypeVar('BuiltT')

FORMAT = 1
WEIGHTS, DESCRIPTION, IDS = 'hellm.safetensors', 'hellm.json', 'ids.json'
# A trained backbone, under the names that transformers knows.
BACKBONE, BACKBONE_CONFIG = 'model.safetensors', 'config.json'
# Where PEFT keeps a module that it wraps, and what it puts beside it.
WRAPPED = re.compile(r'\.(base_layer|original_module)(?=\.)')
ADDED = re.compile(r'\.(lora_|modules_to_save\.|trainable_tokens_)')
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
    own, adapter = _own_state(model), _adapter_state(model)
    backbone = model.backbone.state_dict() if model.train_backbone else None
    description = {
        'format': FORMAT,
        **_describe(model),
        'fingerprint': None if ids is None else ids.fingerprint,
        'hash': {
            'embeddings': tensor_hash(_tables(own)),
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
    own = load_tensors(folder / WEIGHTS, expected=_own_state(recommender))
    _check_hash(folder / WEIGHTS, own, hashes['weights'])
    if tensor_hash(_tables(own)) != hashes['embeddings']:
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


def _own_state(model: LLMRecommender) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: state[name] for name in state if not name.startswith('llm.')}


def _tables(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: own[name] for name in own if name.startswith('tables.')}


def _adapter_state(model: LLMRecommender) -> dict[str, Tensor] | None:
    if not isinstance(model.llm, PeftModel):
        return None
    return get_peft_model_state_dict(model.llm, save_embedding_layers=False)


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
