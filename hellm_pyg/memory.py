"""What training needs in memory, estimated before anything is loaded."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_geometric.data import HeteroData

from hellm_pyg.activations import activation_bytes, head_bytes, ranking_bytes
from hellm_pyg.assembly import (
    LLM_KEYS,
    PREFIX_FROM_LLM,
    build_data,
    build_model,
    check_backbone,
    checked_arguments,
    default_arguments,
    model_class,
    sampling_of,
    table_width,
)
from hellm_pyg.backbone_shape import BackboneShape, backbone_shape, lora_parameters
from hellm_pyg.config import Config, LLMConfig, TrainConfig, load_run_config
from hellm_pyg.keys import in_words_of
from hellm_pyg.nn.loss import CHUNK_SIZE
from hellm_pyg.nn.scoring import CHUNK_ELEMENTS
from hellm_pyg.precision import resolve_precision

# Where the data are not read: what shops and review sites have on average, and the
# width of BERT's features.
INTERACTIONS_PER_USER = 10
FEATURE_WIDTH = 768
EMBEDDING_WIDTH = 64
# What a member of an ensemble holds, and what all members share.
HELD = (
    'parameters',
    'backbone',
    'LoRA',
    'prefix',
    'projector',
    'item head',
    'item tables',
)
SHARED = ('graphs', 'features')


@dataclass(frozen=True)
class DataSizes:
    """The sizes of the data that memory depends on."""

    num_users: int
    num_items: int
    num_interactions: int
    features: dict[str, int]

    @classmethod
    def of(cls, config: Config, users: int | None, items: int | None) -> DataSizes:
        """Takes given numbers; what is not given, the data have."""
        if users is not None and items is not None:
            features = dict.fromkeys(config.data.features, FEATURE_WIDTH)
            return cls(users, items, users * INTERACTIONS_PER_USER, features)
        try:
            data, _ = build_data(config.data)
        except ValueError as error:
            raise ValueError(
                f"{error}; or give both 'users' and 'items', as in 'hellm doctor --run "
                f"RECIPE --users 22363 --items 12101': no data are read then"
            ) from None
        found = int(data['user'].num_nodes)
        interactions = data['user', 'interacts', 'item'].edge_index.size(1)
        return cls(
            found if users is None else users,
            int(data['item'].num_nodes) if items is None else items,
            interactions if users is None else round(interactions / found * users),
            {
                name.removeprefix('x_'): x.size(1)
                for name, x in data['item'].items()
                if name.startswith('x_')
            },
        )

    def empty(self) -> HeteroData:
        """Data of these sizes without content."""
        data = HeteroData()
        data['user'].num_nodes = self.num_users
        data['item'].num_nodes = self.num_items
        for name, width in self.features.items():
            x = torch.empty(self.num_items, width, device='meta')
            data['item'][f'x_{name}'] = x
        return data


def estimate_run(
    config: Config, users: int | None = None, items: int | None = None
) -> dict[str, int]:
    """Estimates the memory of training, in bytes by part; of an ensemble, of ranking.

    Weights, gradients and optimiser states are exact, activations an upper bound.

    Args:
        config: The experiment, of either phase.
        users: Number of users; the data are read unless both numbers are given, and
            a number that is given alone stands in for theirs.
        items: Number of items.

    Raises:
        ValueError: If the configuration cannot be run.
    """
    sizes = DataSizes.of(config, users, items)
    if config.ensemble is not None:
        return _ensemble(config, sizes)
    rows = (_phase_one if config.llm is None else _phase_two)(config, sizes)
    return rows | _teachers(config, sizes)


def _folder(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _member(name: str, folder: str, key: str) -> Config:
    """The configuration of a run that another one reads whole."""
    path = _folder(folder) / 'config.yaml'
    if not path.is_file():
        raise ValueError(
            f"'{key}.{name}' needs to be the folder of a run, which says what it holds "
            f"(got '{path.parent}', without '{path.name}'): train it first"
        )
    own = load_run_config(path)
    if own.ensemble is not None:
        raise ValueError(
            f"'{key}.{name}' needs to be a run that is no ensemble itself (got "
            f"'{path.parent}')"
        )
    return own


def _teachers(config: Config, sizes: DataSizes) -> dict[str, int]:
    """What other runs hold beside a training that they teach."""
    if config.train.distill is None:
        return {}
    held = missing = ranking = 0
    rows = min(_tokens(config.train), max(1, CHUNK_ELEMENTS // sizes.num_items))
    for name, folder in config.train.distill.runs.items():
        if not (_folder(folder) / 'config.yaml').is_file():
            missing += 4 * sizes.num_items * EMBEDDING_WIDTH
            continue
        own = _member(name, folder, 'train.distill.runs')
        found = (_phase_one if own.llm is None else _phase_two)(own, sizes)
        held += sum(found.get(part, 0) for part in HELD) + _encoded(own, sizes)
        if own.llm is not None:
            batch = -(-_tokens(config.train) // config.train.max_len)
            ranking = max(ranking, _ranking(own, batch, sizes))
        else:
            ranking = max(ranking, _sequence_states(own, _tokens(config.train)))
    # Scores, their softmax, the mean, what it takes from the loss and two products.
    scores = 6 * 4 * rows * sizes.num_items
    return {
        'teachers': held,
        **({'teachers still to come, if as a SASRec': missing} if missing else {}),
        'what they tell of a batch (at most)': scores + ranking,
    }


def _arguments(config: Config) -> dict[str, Any]:
    """Those of a model of phase 1, with what a recipe leaves to its class."""
    return {**default_arguments(config), **config.model}


def _sequence_states(config: Config, tokens: int) -> int:
    """What a sequence model of phase 1 holds to read so many items, at most."""
    arguments = _arguments(config)
    width = int(arguments.get('embedding_dim', EMBEDDING_WIDTH))
    layers = int(arguments.get('num_layers', 0))
    heads = int(arguments.get('num_heads', 1))
    states = width * (24 * layers + 6) + 3 * layers * heads * config.train.max_len
    return 4 * tokens * states


def _ensemble(config: Config, sizes: DataSizes) -> dict[str, int]:
    """What the members hold when they rank."""
    assert config.ensemble is not None
    rows: dict[str, int] = {}
    shared: dict[str, int] = {}
    encoded = ranking = 0
    for name, folder in config.ensemble.members.items():
        own = _member(name, folder, 'ensemble.members')
        found = (_phase_one if own.llm is None else _phase_two)(own, sizes)
        rows[name] = sum(found.get(part, 0) for part in HELD)
        for part in SHARED:
            if part in found:
                shared[part] = max(found[part], shared.get(part, 0))
        encoded += _encoded(own, sizes)
        if own.llm is not None:  # one member ranks at a time
            ranking = max(ranking, _ranking(own, config.eval.batch_size, sizes))
    members = len(config.ensemble.members)
    # Of every member standardised and among rivals, which have an int64 each, of the
    # sums, and of those that one of them compares (see choose_weights); where torch has
    # several threads it counts what it selects in two int64 each.
    scores = 4 * (2 * members + 9) * config.eval.batch_size * sizes.num_items
    combinations = len(set(config.ensemble.grid)) ** (members - 1) + members
    return {
        **rows,
        **shared,
        'encoded catalogues (at most)': encoded,
        **({'activations of a language model (at most)': ranking} if ranking else {}),
        'ranks of all combinations': 2 * 4 * combinations * sizes.num_users,
        'scores of a validation batch': scores,
    }


def _encoded(config: Config, sizes: DataSizes) -> int:
    """What a model computes once to score all users, at most."""
    if config.llm is not None:  # soft tokens, and the vectors of a head
        return 4 * sizes.num_items * 2 * _backbone(config.llm).hidden_size
    width = int(_arguments(config).get('embedding_dim', EMBEDDING_WIDTH))
    match sampling_of(model_class(config.model.get('name'))):
        case 'pairs':  # some put their modalities side by side
            nodes = sizes.num_users + sizes.num_items
            return 4 * nodes * width * (1 + len(sizes.features))
        case 'sequences':
            return 4 * sizes.num_items * width
        case _:  # interactions in both directions, as pairs with a value
            return 2 * 3 * 8 * sizes.num_interactions + 8 * sizes.num_items


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _trained(number: int) -> dict[str, int]:
    return {'gradients': 4 * number, 'Adam moments': 8 * number}


def _tokens(train: TrainConfig) -> int:
    return train.batch_tokens or train.batch_size * train.max_len


def _triples(config: Config, width: int, sizes: DataSizes) -> int:
    """What a loss holds of the users, items and negatives of a batch, at most."""
    arguments = inspect.signature(model_class(config.model.get('name'))).parameters
    features = sizes.features if 'feature_dims' in arguments else {}
    rows = config.train.batch_size * (2 + config.train.num_neg)
    # Their vectors, in some models with one a modality, products and gradients.
    vectors = 6 * width * (1 + len(features))
    # Scores, their logarithms and what is hidden of them, where rows compete.
    compete = 'mask_duplicates' in arguments
    pairs = config.train.batch_size**2 * (1 + len(features)) if compete else 0
    return 4 * rows * (vectors + 3 * sum(features.values())) + 16 * pairs


def _contrast(config: Config, arguments: dict[str, Any], sizes: DataSizes) -> int:
    """Similarities of some anchors with both views of the negatives."""
    if not arguments.get('contrastive'):
        return 0
    nodes = max(sizes.num_users, sizes.num_items)
    named = {'batch': min(config.train.batch_size, nodes), 'full': nodes}
    scope = arguments['scope']
    return 4 * CHUNK_SIZE * 2 * named.get(scope, scope)


def _phase_one(config: Config, sizes: DataSizes) -> dict[str, int]:
    with torch.device('meta'):
        model = build_model(config, sizes.empty())
    number = _count(model)
    arguments = _arguments(config)
    width = int(arguments.get('embedding_dim', EMBEDDING_WIDTH))
    nodes = sizes.num_users + sizes.num_items
    hyperedges = sizes.num_items * config.data.knn * len(sizes.features)
    rows = {
        'parameters': 4 * number,
        **_trained(number),
        # Two int64 and an fp32 in either order of a symmetric graph, and an
        # EdgeIndex with both of its sorted forms.
        'graphs': 2 * 20 * sizes.num_interactions
        + 7 * 8 * (sizes.num_interactions + hyperedges),
        'features': 4 * sizes.num_items * sum(sizes.features.values()),
    }
    kind = sampling_of(model)
    if kind == 'pairs':
        layers = sum(v for key, v in arguments.items() if key.endswith('_layers'))
        rows['activations (at most)'] = 4 * width * nodes * (layers + 12)
        rows['activations (at most)'] += _triples(config, width, sizes)
        rows['activations (at most)'] += _contrast(config, arguments, sizes)
    elif kind == 'sequences':
        tokens = _tokens(config.train)
        negatives = config.train.num_neg * tokens
        rows['activations (at most)'] = _sequence_states(config, tokens) + 4 * (
            3 * negatives + 2 * 512 * (sizes.num_items + config.train.num_neg * width)
        )
    rows['scores of a validation batch'] = 8 * config.eval.batch_size * sizes.num_items
    return rows


def _table_width(name: str, source: str, sizes: DataSizes) -> int:
    finished = (Path(source) / 'embeddings.safetensors').is_file()
    if finished or source.startswith(('features:', 'random:')):
        return table_width(source, sizes.features, f'llm.tables.{name}')
    return EMBEDDING_WIDTH  # of a run that is still to come, or to end


def _backbone(llm: LLMConfig) -> BackboneShape:
    name = os.path.expanduser(os.path.expandvars(llm.name))
    return backbone_shape(name, llm.num_layers, llm.shape)


def _ranking(config: Config, batch_size: int, sizes: DataSizes) -> int:
    """What a language model holds to score a batch, beside its weights."""
    assert config.llm is not None
    shape = _backbone(config.llm)
    trained = (
        0 if config.llm.weights == 'frozen' else shape.num_linear + shape.num_other
    )
    low = resolve_precision(config.train.precision) == 'bf16'
    copies = 2 * trained if low else 0
    return copies + ranking_bytes(
        batch_size, sizes.num_items, config.train, config.llm, shape
    )


@in_words_of(LLMConfig, 'llm', **LLM_KEYS)
def _phase_two(config: Config, sizes: DataSizes) -> dict[str, int]:
    from hellm_pyg.llm.head import ItemHead
    from hellm_pyg.llm.prefix import GraphPrefix
    from hellm_pyg.llm.projector import FusedProjector

    llm = config.llm
    assert llm is not None
    check_backbone(llm)
    with in_words_of(LLMConfig, 'llm'):
        shape = _backbone(llm)
    widths = {
        name: _table_width(name, os.path.expandvars(source), sizes)
        for name, source in llm.tables.items()
    }
    read = {'token': llm.token, 'train_tables': llm.train_tables}
    pooled = str((llm.prefix or {}).get('embedding', 'graph'))
    pools = llm.prefix is not None and llm.prefix.get('pool', True)
    if pools:
        read['prefix.embedding'] = [pooled]
    if llm.smoothing is not None and llm.smoothing.embedding is not None:
        read['smoothing.embedding'] = [llm.smoothing.embedding]
    for key, names in read.items():
        for name in names:
            if name not in widths:
                raise ValueError(
                    f"'llm.{key}' names a table that is not among 'llm.tables', "
                    f'{sorted(widths)} (got {name!r})'
                )
    token = sum(widths[name] for name in llm.token)
    with torch.device('meta'):
        projector = FusedProjector(token, shape.hidden_size, llm.projector_layers)
        head = ItemHead(
            llm.head,
            shape.hidden_size,
            sizes.num_items,
            state_channels=token if llm.head == 'tied' else None,
            adapter_channels=llm.head_channels,
        )
        prefix = None
        if llm.prefix is not None:
            own = {k: v for k, v in llm.prefix.items() if k != 'embedding'}
            own = checked_arguments(GraphPrefix, own, 'llm.prefix', PREFIX_FROM_LLM)
            with in_words_of(GraphPrefix, 'llm.prefix'):
                prefix = GraphPrefix(
                    widths[pooled] if pools else 1,  # read by pooling only
                    shape.hidden_size,
                    shape.num_layers,
                    scope=llm.scope,
                    **own,
                )
    low = resolve_precision(config.train.precision) == 'bf16'
    lora = lora_parameters(llm, shape)
    trained_tables = sum(sizes.num_items * widths[name] for name in llm.train_tables)
    number = lora + _count(prefix) + _count(projector) + _count(head) + trained_tables
    whole = 0 if llm.weights == 'frozen' else shape.num_linear + shape.num_other
    number += whole
    weight = 2 if low and not whole else 4
    linear = shape.num_linear * weight
    if llm.load_in_4bit:  # 4 bits and doubly quantised scales
        linear = int(shape.num_linear * 0.516)
    frozen = sum(buffer.numel() for buffer in head.buffers())
    copies = 2 * number if low else 0  # of the trained matrices, under autocast
    training = activation_bytes(config.train, llm, shape) + copies
    width = token if llm.head == 'tied' else shape.hidden_size
    training += head_bytes(config.train, llm, width, sizes.num_items)
    ranking = _ranking(config, config.eval.batch_size, sizes)
    return {
        'backbone': linear + shape.num_other * weight,
        'LoRA': 4 * lora,
        'prefix': 4 * _count(prefix),
        'projector': 4 * _count(projector),
        'item head': 4 * (_count(head) + frozen),
        'item tables': 4 * sizes.num_items * sum(widths.values()),
        **_trained(number),
        'activations (at most)': training,
        'validation beyond these (at most)': max(ranking - training, 0),
    }
