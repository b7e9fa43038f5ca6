"""From the section ``model`` to a model of phase 1, and loaders of either phase."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, get_type_hints

from torch import nn
from torch_geometric.data import HeteroData

from hellm_pyg.assembly.data import item_features
from hellm_pyg.config import Config, TrainConfig, nearest, parse
from hellm_pyg.keys import in_words_of

# Constructor arguments that the data give.
FROM_DATA = ('num_users', 'num_items', 'feature_dims')


def model_class(name: object) -> type[nn.Module]:
    """Returns the class of that name in :mod:`hellm_pyg.nn.models`.

    Raises:
        ValueError: If there is none; names the nearest.
    """
    from hellm_pyg.nn import models

    bases = (models.GraphRecommender, models.SequenceRecommender, models.Ensemble)
    known = {
        key: value
        for key, value in vars(models).items()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and value not in bases
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


def default_arguments(config: Config) -> dict[str, Any]:
    """Returns what the section ``model`` may leave out, by the class that it names.

    ``max_len`` is that of the training; what the data give is left out.

    Raises:
        ValueError: If there is no such class.
    """
    parameters = inspect.signature(model_class(config.model.get('name'))).parameters
    found = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty and name not in FROM_DATA
    }
    return {**found, 'max_len': config.train.max_len} if 'max_len' in found else found


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
    features = {name: x.size(1) for name, x in item_features(data).items()}
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


def sampling_of(model: nn.Module | type[nn.Module]) -> str:
    """Returns what a model is trained on: ``'pairs'``, ``'sequences'``, ``'none'``.

    A model that does not tell, such as a recommender by language model, reads
    histories.
    """
    return str(getattr(model, 'sampling', 'sequences'))


@in_words_of(TrainConfig, 'train')
def build_loader(config: Config, data: HeteroData, model: nn.Module) -> Any:
    """Returns the loader of the mini-batches that train a model.

    :obj:`None` for a model without anything to train.
    """
    from hellm_pyg.data import PairLoader, SequenceLoader

    train, sampling = config.train, sampling_of(model)
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
