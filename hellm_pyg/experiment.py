"""From a configuration to data, model, training and back from a run folder."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

from hellm_pyg import checkpoint
from hellm_pyg.config import (
    Config,
    DataConfig,
    LLMConfig,
    load_config,
    nearest,
    parse,
    save_config,
    to_dict,
)
from hellm_pyg.datasets.ids import IdMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellm_pyg.evaluation import Evaluation

# Constructor arguments that the data give.
FROM_DATA = ('num_users', 'num_items', 'feature_dims')


class Run(NamedTuple):
    """A trained model beside everything that it was trained with."""

    folder: Path
    config: Config
    data: HeteroData
    ids: IdMap
    model: nn.Module


def _expand(value: str, key: str) -> str:
    expanded = os.path.expandvars(value)
    unset = re.search(r'\$(?:\{(\w+)\}|(\w+))', expanded)
    if unset:
        raise ValueError(
            f"'{key}' reads the environment variable {unset[1] or unset[2]!r}, which "
            f'is not set (got {value!r}); export it or give the path'
        )
    return str(Path(expanded).expanduser().absolute())


def resolve_paths(config: Config) -> Config:
    """Expands ``${VARIABLES}`` and makes every path absolute.

    Raises:
        ValueError: If a path is missing or names a variable that is not set.
    """
    data, llm = config.data, config.llm
    if not data.interactions:
        raise ValueError("'data.interactions' needs a file (got nothing)")
    data = dataclasses.replace(
        data,
        interactions=_expand(data.interactions, 'data.interactions'),
        root=_expand(data.root, 'data.root'),
        items=None if data.items is None else _expand(data.items, 'data.items'),
        features={
            name: _expand(path, f'data.features.{name}')
            for name, path in data.features.items()
        },
    )
    if llm is not None:
        is_path = llm.name.startswith(('.', '/', '~', '$')) or Path(llm.name).is_dir()
        llm = dataclasses.replace(
            llm,
            name=_expand(llm.name, 'llm.name') if is_path else llm.name,
            tables={
                name: source
                if source.startswith(('features:', 'random:'))
                else _expand(source, f'llm.tables.{name}')
                for name, source in llm.tables.items()
            },
        )
    return dataclasses.replace(config, data=data, llm=llm)


def build_data(config: DataConfig) -> tuple[HeteroData, IdMap]:
    """Reads (or takes from the cache) the split interactions and their graphs.

    Raises:
        ValueError: If a file cannot be used.
    """
    from hellm_pyg.datasets import InteractionFiles
    from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph

    config = resolve_paths(Config(data=config)).data
    arguments = dataclasses.asdict(config)
    k, direction, index = (
        arguments.pop(name) for name in ('knn', 'knn_direction', 'knn_index')
    )
    transforms: list[Any] = [LeaveOneOut(), UserItemGraph()]
    if config.features:
        modalities = tuple(config.features)
        transforms.append(KNNHyperedges(k, modalities, direction, index))
    dataset = InteractionFiles(pre_transform=Compose(transforms), **arguments)
    return dataset[0], dataset.ids


def statistics(data: HeteroData) -> dict[str, object]:
    """Returns the numbers of a data card, before and after the split."""
    users, items = int(data['user'].num_nodes), int(data['item'].num_nodes)
    train = data['user', 'interacts', 'item'].edge_index
    val, test = (int((data['user'][f'{s}_item'] >= 0).sum()) for s in ('val', 'test'))
    length = torch.bincount(train[0].as_subclass(Tensor), minlength=users)
    length = length + 2 * (data['user'].test_item >= 0)
    total = train.size(1) + val + test
    rows: dict[str, object] = {
        'name': data.name,
        'users': users,
        'items': items,
        'interactions': total,
        'training interactions': train.size(1),
        'training + test (as the article counts)': train.size(1) + test,
        'users with a target': test,
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
        if inspect.isclass(value) and issubclass(value, nn.Module)
    }
    known.pop('GraphRecommender', None)
    if name not in known:
        hint = f'; the nearest is {nearest(str(name), known)!r}' if name else ''
        raise ValueError(
            f"'model.name' needs to be one of {', '.join(sorted(known))} "
            f'(got {name!r}){hint}'
        )
    return known[str(name)]


def build_model(config: Config, data: HeteroData) -> nn.Module:
    """Builds the phase-1 model that the section ``model`` describes.

    Raises:
        ValueError: If the class or an argument is unknown (names the nearest), or
            an argument has the wrong type.
    """
    arguments = dict(config.model)
    name = arguments.pop('name', None)
    cls = model_class(name)
    hints = get_type_hints(cls.__init__)
    signature = inspect.signature(cls).parameters
    own = [key for key in signature if key not in FROM_DATA]
    for key, value in arguments.items():
        if key not in own:
            raise ValueError(
                f"unknown argument 'model.{key}' of {name}; the nearest is "
                f"'model.{nearest(key, own)}'"
            )
        arguments[key] = parse(value, hints.get(key, Any), f'model.{key}', str(name))
    if 'max_len' in own:
        max_len = arguments.setdefault('max_len', config.train.max_len)
        if max_len < config.train.max_len:
            raise ValueError(
                f"'model.max_len' needs to be at least 'train.max_len' "
                f'{config.train.max_len} (got {max_len})'
            )
    features = {key: x.size(1) for key, x in _features(data).items()}
    if 'modalities' in own and arguments.get('modalities') is None:
        arguments['modalities'] = sorted(features) or None
    given = {
        'num_users': int(data['user'].num_nodes),
        'num_items': int(data['item'].num_nodes),
        'feature_dims': features,
    }
    given = {key: value for key, value in given.items() if key in signature}
    return cls(**given, **arguments)


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


def _claim(run_dir: Path, config: Config) -> None:
    """Writes the configuration into a run folder, or checks that it is the same."""
    path = run_dir / 'config.yaml'
    if not path.is_file():
        run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, path)
        return
    old, new = to_dict(load_config(path)), to_dict(config)
    differing = [key for key in new if old[key] != new[key]]
    for key in differing[:1]:
        names = [key]
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            names = [
                f'{key}.{name}'
                for name in sorted({*old[key], *new[key]})
                if old[key].get(name) != new[key].get(name)
            ]
        raise ValueError(
            f"'{run_dir}' holds a run of another configuration, which differs in "
            f"'{names[0]}'; choose another folder or remove this one"
        )
