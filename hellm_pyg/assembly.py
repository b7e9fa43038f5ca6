"""From the sections of a configuration to data, models and loaders."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform, Compose

from hellm_pyg import checkpoint
from hellm_pyg.config import (
    Config,
    DataConfig,
    LLMConfig,
    TrainConfig,
    nearest,
    parse,
)
from hellm_pyg.data.split import LATER, fold_in
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.held_out import check_tables
from hellm_pyg.keys import in_words_of

if TYPE_CHECKING:
    from hellm_pyg.datasets import InteractionFiles
    from hellm_pyg.llm.recommender import LLMRecommender

# Constructor arguments that the data give.
FROM_DATA = ('num_users', 'num_items', 'feature_dims')
# And those of a prefix that the language model gives.
PREFIX_FROM_LLM = ('channels', 'hidden_size', 'num_layers', 'scope')
# Arguments that have another name in a recipe.
KNN_KEYS = {name: f'data.knn_{name}' for name in ('direction', 'index')}
KNN_KEYS['k'] = 'data.knn'
LLM_KEYS = {
    'item_embeddings': 'llm.tables',
    'token_embeddings': 'llm.token',
    'train_embeddings': 'llm.train_tables',
    'prefix_embedding': 'llm.prefix.embedding',
    'kind': 'llm.head',
    'adapter_channels': 'llm.head_channels',
    'num_layers': 'llm.projector_layers',
    'before': 'llm.instruction',
}


def _expand(value: str, key: str) -> str:
    expanded = os.path.expandvars(value)
    unset = re.search(r'\$(?:\{(\w+)\}|(\w+))', expanded)
    if unset:
        name = unset[1] or unset[2]
        raise ValueError(
            f"'{key}' reads the environment variable {name!r}, which is not set (got "
            f"{value!r}): set it, as in 'export {name}=/path/of/a/folder', or give the "
            f"path, '{key}=...'"
        )
    return str(Path(expanded).expanduser().absolute())


def resolve_paths(config: Config) -> Config:
    """Expands ``${VARIABLES}`` and makes every path absolute.

    Raises:
        ValueError: If a path is missing or names a variable that is not set.
    """
    llm = None if config.llm is None else _resolve_llm(config.llm)
    ensemble = config.ensemble
    if ensemble is not None:
        members = {
            name: _expand(path, f'ensemble.members.{name}')
            for name, path in ensemble.members.items()
        }
        ensemble = dataclasses.replace(ensemble, members=members)
    data, train = _resolve_data(config.data), config.train
    if train.refit is not None:
        refit = _expand(train.refit, 'train.refit')
        train = dataclasses.replace(train, refit=refit)
    return dataclasses.replace(
        config, data=data, llm=llm, ensemble=ensemble, train=train
    )


def _resolve_data(data: DataConfig) -> DataConfig:
    if not data.interactions:
        raise ValueError("'data.interactions' needs a file (got nothing)")
    return dataclasses.replace(
        data,
        interactions=_expand(data.interactions, 'data.interactions'),
        root=_expand(data.root, 'data.root'),
        items=None if data.items is None else _expand(data.items, 'data.items'),
        features={
            name: _expand(path, f'data.features.{name}')
            for name, path in data.features.items()
        },
    )


def _resolve_llm(llm: LLMConfig) -> LLMConfig:
    is_path = llm.name.startswith(('.', '/', '~', '$')) or Path(llm.name).is_dir()
    return dataclasses.replace(
        llm,
        name=_expand(llm.name, 'llm.name') if is_path else llm.name,
        tables={
            name: source
            if source.startswith(('features:', 'random:'))
            else _expand(source, f'llm.tables.{name}')
            for name, source in llm.tables.items()
        },
    )


def build_data(config: DataConfig) -> tuple[HeteroData, IdMap]:
    """Reads (or takes from the cache) the split interactions and their graphs.

    Raises:
        ValueError: If a file cannot be used.
    """
    dataset = load_dataset(config)
    return dataset[0], dataset.ids


def training_data(config: Config, data: HeteroData) -> HeteroData:
    """Returns what a run trains on, with the held-out items that ``train.split`` adds.

    Args:
        config: The experiment.
        data: Its split interactions; left untouched.
    """
    match config.train.split:
        case 'train':
            return data
        case 'train+val':
            return fold_in(data, 'test')
        case 'all':
            return fold_in(data, 'all')


@in_words_of(DataConfig, 'data', **KNN_KEYS)
def load_dataset(config: DataConfig) -> InteractionFiles:
    """Reads (or takes from the cache) the data set that :func:`build_data` returns.

    Raises:
        ValueError: If a file cannot be used.
    """
    from hellm_pyg.datasets import InteractionFiles
    from hellm_pyg.transforms import KNNHyperedges, UserItemGraph

    config = _resolve_data(config)
    arguments = dataclasses.asdict(config)
    k, direction, index = (
        arguments.pop(name) for name in ('knn', 'knn_direction', 'knn_index')
    )
    for name in ('val_from', 'test_from'):
        del arguments[name]
    transforms: list[Any] = [_split(config), UserItemGraph()]
    if config.features:
        modalities = tuple(config.features)
        transforms.append(KNNHyperedges(k, modalities, direction, index))
    return InteractionFiles(pre_transform=Compose(transforms), **arguments)


def _split(config: DataConfig) -> BaseTransform:
    if config.val_from is None and config.test_from is None:
        from hellm_pyg.transforms import LeaveOneOut

        return LeaveOneOut()
    from hellm_pyg.transforms import HoldOutByDate

    if config.val_from is None or config.test_from is None:
        raise ValueError(
            "'val_from' and 'test_from' make a hold-out by date together (got "
            f'{config.val_from!r} and {config.test_from!r})'
        )
    return HoldOutByDate(config.val_from, config.test_from)


def statistics(data: HeteroData) -> dict[str, object]:
    """Returns the numbers of a data card, before and after the split."""
    users, items = int(data['user'].num_nodes), int(data['item'].num_nodes)
    train = data['user', 'interacts', 'item'].edge_index
    val, test = (int((data['user'][f'{s}_item'] >= 0).sum()) for s in ('val', 'test'))
    length = torch.bincount(train[0].as_subclass(Tensor), minlength=users)
    for split in ('val', 'test'):
        length = length + (data['user'][f'{split}_item'] >= 0)
    left_out = data[LATER].edge_index.size(1) if LATER in data.edge_types else 0
    total = train.size(1) + val + test
    rows: dict[str, object] = {
        'name': data.name,
        'users': users,
        'items': items,
        'interactions': total,
        'training interactions': train.size(1),
        'training + test (as the article counts)': train.size(1) + test,
        'users with a target': test,
        **({'after the dates, in no split': left_out} if left_out else {}),
        'items without training': items - int(train[1].unique().numel()),
        'history, mean': f'{total / users:.2f}',
        'history, median': int(length.median()),
        'history, longest': int(length.max()),
        'sparsity': f'{100 * (1 - total / (users * items)):.4f} %',
    }
    for name, x in _features(data).items():
        missing = int(x.isnan().all(dim=1).sum())
        rows[f'{name} features'] = f'{x.size(1)} wide, {missing} items without'
    rows['fingerprint'] = data.fingerprint[:16]
    return rows


def _features(data: HeteroData) -> dict[str, Tensor]:
    return {
        name.removeprefix('x_'): value
        for name, value in data['item'].items()
        if name.startswith('x_')
    }


def model_class(name: object) -> type[nn.Module]:
    """Returns the class of that name in :mod:`hellm_pyg.nn.models`.

    Raises:
        ValueError: If there is none; names the nearest.
    """
    from hellm_pyg.nn import models

    known = {
        key: value
        for key, value in vars(models).items()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and value not in (models.GraphRecommender, models.Ensemble)
    }
    if str(name) not in known:
        hint = f'; the nearest is {nearest(str(name), known)!r}' if name else ''
        raise ValueError(
            f"'model.name' needs to be one of {', '.join(sorted(known))} "
            f'(got {name!r}){hint}'
        )
    return known[str(name)]


def checked_arguments(
    cls: type, given: Mapping[str, Any], section: str, from_data: Collection[str]
) -> dict[str, Any]:
    """Checks names and types against the constructor, which is the schema."""
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    own = [name for name in inspect.signature(cls).parameters if name not in from_data]
    checked = {}
    for name, value in given.items():
        if name not in own:
            found = nearest(str(name), own) if own else ''
            hint = f"; the nearest is '{section}.{found}'" if own else ''
            raise ValueError(
                f"unknown argument '{section}.{name}' of {cls.__name__}{hint}"
            )
        kind = hints.get(name, Any)
        checked[name] = parse(value, kind, f'{section}.{name}', cls.__name__)
    return checked


def build_model(config: Config, data: HeteroData) -> nn.Module:
    """Builds the phase-1 model that the section ``model`` describes.

    Raises:
        ValueError: If the class or an argument is unknown (names the nearest), or
            an argument has the wrong type.
    """
    given = dict(config.model)
    cls = model_class(given.pop('name', None))
    arguments = checked_arguments(cls, given, 'model', FROM_DATA)
    signature = inspect.signature(cls).parameters
    if 'max_len' in signature:
        max_len = arguments.setdefault('max_len', config.train.max_len)
        if max_len < config.train.max_len:
            raise ValueError(
                f"'model.max_len' needs to be at least 'train.max_len', "
                f'{config.train.max_len} (got {max_len})'
            )
    features = {name: x.size(1) for name, x in _features(data).items()}
    if 'modalities' in signature and arguments.get('modalities') is None:
        arguments['modalities'] = sorted(features) or None
    from_data = {
        'num_users': int(data['user'].num_nodes),
        'num_items': int(data['item'].num_nodes),
        'feature_dims': features,
    }
    arguments |= {name: from_data[name] for name in FROM_DATA if name in signature}
    known = {name: name for name in FROM_DATA}
    known['feature_dims'] = 'data.features'
    with in_words_of(cls, 'model', **known):
        return cls(**arguments)


@in_words_of(TrainConfig, 'train')
def build_loader(config: Config, data: HeteroData, model: nn.Module) -> Any:
    """Returns the loader of the mini-batches that train a model.

    :obj:`None` for a model without anything to train.
    """
    from hellm_pyg.data import PairLoader, SequenceLoader

    train, sampling = config.train, getattr(model, 'sampling', 'sequences')
    if sampling == 'none':
        return None
    if sampling == 'pairs':
        return PairLoader(
            data,
            train.batch_size,
            num_neg=train.num_neg,
            sampling=train.sampling,
            seed=train.seed,
        )
    return SequenceLoader(
        data,
        'train',
        train.batch_size,
        max_len=train.max_len,
        targets=train.targets,
        num_neg=train.num_neg,
        seed=train.seed,
        batch_tokens=train.batch_tokens,
    )


def item_table(
    name: str, source: str, data: HeteroData, ids: IdMap, seed: int = 0
) -> Tensor:
    """Returns a table that language models read items from, :math:`[I, d]`.

    Args:
        name: Name of the table, for messages.
        source: Run folder of phase 1, ``'features:<modality>'`` or
            ``'random:<width>'``.
        data: The data.
        ids: Their id map, which that of the run folder must equal.
        seed: Seed of a random table.

    Raises:
        ValueError: If there is no such table, or it is of other data.
    """
    key, num_items = f'llm.tables.{name}', int(data['item'].num_nodes)
    width = table_width(source, {m: x.size(1) for m, x in _features(data).items()}, key)
    kind, _, rest = source.partition(':')
    if kind == 'features':
        return _features(data)[rest]
    if kind == 'random':
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(num_items, width, generator=generator) / width**0.5
    check_catalogue(Path(source), ids)
    return checkpoint.load_tensors(Path(source) / 'embeddings.safetensors')['item']


def table_width(source: str, features: Mapping[str, int], key: str = 'table') -> int:
    """Returns the width of an :func:`item_table` without reading it.

    Raises:
        ValueError: If there is no such table.
    """
    kind, _, rest = source.partition(':')
    if kind == 'features':
        if rest not in features:
            hint = f'; the nearest is {nearest(rest, features)!r}' if features else ''
            raise ValueError(
                f"'{key}' names features that the data lack (got {source!r}){hint}"
            )
        return features[rest]
    if kind == 'random':
        if not rest.isdecimal() or int(rest) < 1:
            raise ValueError(f"'{key}' needs a width, as 'random:64' (got {source!r})")
        return int(rest)
    path = Path(source) / 'embeddings.safetensors'
    if not path.is_file():
        raise ValueError(
            f"'{key}' needs the folder of a finished phase-1 run, as 'hellm pretrain' "
            f"leaves it, 'features:<modality>' or 'random:<width>' (got {source!r})"
        )
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        return int(file.get_slice('item').get_shape()[1])


def check_catalogue(run_dir: Path, ids: IdMap) -> None:
    """Refuses a run folder whose users and items are not those of the data.

    Raises:
        ValueError: If the id maps differ.
    """
    saved = IdMap.load(run_dir / 'ids.json')
    if saved.fingerprint != ids.fingerprint:
        raise ValueError(
            f"'{run_dir}' was trained on other data: {saved.num_users} users and "
            f'{saved.num_items} items of other ids or in another order (got '
            f'{ids.num_users} and {ids.num_items}); train it again on these data'
        )


@in_words_of(LLMConfig, 'llm', **LLM_KEYS)
def build_llm(config: Config, data: HeteroData, ids: IdMap) -> LLMRecommender:
    """Builds the language-model recommender that the section ``llm`` describes.

    Raises:
        ValueError: If a part cannot be found or does not fit.
    """
    from hellm_pyg.llm.backbone import load_backbone
    from hellm_pyg.llm.prefix import GraphPrefix
    from hellm_pyg.llm.prompt import Prompt
    from hellm_pyg.llm.recommender import LLMRecommender

    if config.llm is None:
        raise ValueError("'llm' needs to be a section of the recipe (got null)")
    llm = _resolve_llm(config.llm)
    if llm.scope == 'user' and config.train.targets != 'last':
        raise ValueError(
            "'train.targets' needs to be 'last' with llm.scope=user (got "
            f'{config.train.targets!r})'
        )
    check_tables(llm.tables, config)
    tables = {
        name: item_table(name, source, data, ids, config.train.seed)
        for name, source in llm.tables.items()
    }
    with in_words_of(LLMConfig, 'llm'):
        backbone, tokenizer = load_backbone(
            llm.name,
            llm.num_layers,
            torch.bfloat16 if config.train.precision == 'bf16' else torch.float32,
            llm.load_in_4bit,
        )
    given = {'embedding': 'graph', **(llm.prefix or {})}
    embedding, prefix = str(given.pop('embedding')), None
    if llm.prefix is not None:
        own = checked_arguments(GraphPrefix, given, 'llm.prefix', PREFIX_FROM_LLM)
        if embedding not in tables:
            raise ValueError(
                f"'llm.prefix.embedding' needs to be one of 'llm.tables' "
                f'{sorted(tables)} (got {embedding!r})'
            )
        with in_words_of(GraphPrefix, 'llm.prefix'):
            prefix = GraphPrefix(
                tables[embedding].size(1),
                backbone.config.hidden_size,
                backbone.config.num_hidden_layers,
                scope=llm.scope,
                **own,
            )
    return LLMRecommender(
        backbone,
        Prompt.from_tokenizer(tokenizer, llm.instruction, llm.response, llm.second_bos),
        tables,
        prefix,
        prefix_embedding=embedding,
        token_embeddings=llm.token,
        scope=llm.scope,
        head=llm.head,
        train_embeddings=llm.train_tables,
        head_channels=llm.head_channels,
        lora=llm.lora,
        max_len=config.train.max_len,
        dropout=llm.dropout,
        projector_layers=llm.projector_layers,
        candidates=llm.candidates,
        table_scale=llm.table_scale,
    )
