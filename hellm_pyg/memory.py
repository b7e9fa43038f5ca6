"""What training needs in memory, estimated before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_geometric.data import HeteroData

from hellm_pyg.assembly import (
    PREFIX_FROM_LLM,
    build_data,
    build_model,
    checked_arguments,
    table_width,
)
from hellm_pyg.checkpoint import load_json
from hellm_pyg.config import Config, LLMConfig, TrainConfig, load_run_config, parse

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
# Tokens around the items; the default instruction has 50 to 60.
PROMPT_TOKENS = 64
# Scores that live at once (see ItemHead), with their gradient.
LOGITS = 2 * 2**24 * 4


@dataclass(frozen=True)
class BackboneShape:
    """The sizes of a LLaMA-like language model.

    Args:
        hidden_size: Width :math:`H`.
        num_layers: Layers :math:`L`.
        num_heads: Query heads.
        num_key_value_heads: Key and value heads.
        head_dim: Width of a head.
        intermediate_size: Inner width of the feed-forward part.
        vocab_size: Tokens.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> BackboneShape:
        """Reads the ``config.json`` of transformers."""
        heads, hidden = config['num_attention_heads'], config['hidden_size']
        return cls(
            hidden,
            config['num_hidden_layers'],
            heads,
            config.get('num_key_value_heads') or heads,
            config.get('head_dim') or hidden // heads,
            config['intermediate_size'],
            config['vocab_size'],
        )

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """Input and output width of the linear maps of a layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query = self.num_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        return {
            'q_proj': (hidden, query),
            'k_proj': (hidden, key),
            'v_proj': (hidden, key),
            'o_proj': (query, hidden),
            'gate_proj': (hidden, inner),
            'up_proj': (hidden, inner),
            'down_proj': (inner, hidden),
        }

    @property
    def num_linear(self) -> int:
        """Weights of all layers' linear maps."""
        return self.num_layers * sum(a * b for a, b in self.maps.values())

    @property
    def num_other(self) -> int:
        """Token embeddings and norms (no language-model head)."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return self.vocab_size * self.hidden_size + norms


KNOWN = {
    'SmolLM2-135M-Instruct': BackboneShape(576, 30, 9, 3, 64, 1536, 49152),
    'meta-llama/Llama-2-7b-hf': BackboneShape(4096, 32, 32, 32, 128, 11008, 32000),
}


def backbone_shape(name: str, num_layers: int | None = None) -> BackboneShape:
    """Finds the sizes of a backbone: known, in a folder, or on the hub.

    Raises:
        ValueError: If there is no such model.
    """
    shape = None if Path(name).is_dir() else KNOWN.get(name)
    if shape is None:
        path = Path(name) / 'config.json'
        if not path.is_file():
            path = _hub_config(name)
        try:
            shape = BackboneShape.from_dict(load_json(path, dict))
        except KeyError as error:
            raise ValueError(
                f"'llm.name' needs a LLaMA-like model: its configuration lacks {error} "
                f'(got {name!r})'
            ) from None
    if num_layers is None:
        return shape
    return BackboneShape(**{**vars(shape), 'num_layers': num_layers})


def _hub_config(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, 'config.json'))
    except Exception as error:
        # Offline, gated, unknown and misspelt names all end here.
        raise ValueError(
            f"'llm.name' is neither a known model, a folder, nor on the hub (got "
            f'{name!r}): {type(error).__name__}'
        ) from None


@dataclass(frozen=True)
class DataSizes:
    """The sizes of the data that memory depends on."""

    num_users: int
    num_items: int
    num_interactions: int
    features: dict[str, int]

    @classmethod
    def of(cls, config: Config, users: int | None, items: int | None) -> DataSizes:
        """Takes given numbers, or reads the data."""
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
        return cls(
            int(data['user'].num_nodes),
            int(data['item'].num_nodes),
            data['user', 'interacts', 'item'].edge_index.size(1),
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
        users: Number of users; the data are read unless both numbers are given.
        items: Number of items.

    Raises:
        ValueError: If the configuration cannot be run.
    """
    sizes = DataSizes.of(config, users, items)
    if config.ensemble is not None:
        return _ensemble(config, sizes)
    return (_phase_one if config.llm is None else _phase_two)(config, sizes)


def _ensemble(config: Config, sizes: DataSizes) -> dict[str, int]:
    """What the members hold when they rank, beside their activations."""
    assert config.ensemble is not None
    rows: dict[str, int] = {}
    for name, folder in config.ensemble.members.items():
        path = Path(os.path.expandvars(folder)) / 'config.yaml'
        if not path.is_file():
            raise ValueError(
                f"'ensemble.members.{name}' needs to be the folder of a run, which "
                f"says what it holds (got '{path.parent}', without '{path.name}'): "
                f'train it first'
            )
        own = load_run_config(path)
        if own.ensemble is not None:
            raise ValueError(
                f"'ensemble.members.{name}' needs to be a run that is no ensemble "
                f"itself (got '{path.parent}')"
            )
        found = (_phase_one if own.llm is None else _phase_two)(own, sizes)
        rows[name] = sum(found.get(part, 0) for part in HELD)
        for part in SHARED:
            if part in found:
                rows[part] = max(found[part], rows.get(part, 0))
    # Of every member as it comes and standardised, and two sums.
    number = 2 * len(config.ensemble.members) + 2
    scores = 4 * number * config.eval.batch_size * sizes.num_items
    return {**rows, 'scores of a validation batch': scores}


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _trained(number: int) -> dict[str, int]:
    return {'gradients': 4 * number, 'Adam moments': 8 * number}


def _tokens(train: TrainConfig) -> int:
    return train.batch_tokens or train.batch_size * train.max_len


def _phase_one(config: Config, sizes: DataSizes) -> dict[str, int]:
    with torch.device('meta'):
        model = build_model(config, sizes.empty())
    number = _count(model)
    width = int(getattr(model, 'embedding_dim', config.model.get('embedding_dim', 64)))
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
    kind = getattr(model, 'sampling', 'none')
    if kind == 'pairs':
        layers = sum(
            value for key, value in config.model.items() if key.endswith('_layers')
        )
        rows['activations (at most)'] = 4 * width * nodes * (layers + 12)
    elif kind == 'sequences':
        layers = int(config.model.get('num_layers', 2))
        heads = int(config.model.get('num_heads', 1))
        tokens, rows_ = _tokens(config.train), config.train.max_len
        negatives = config.train.num_neg * tokens
        rows['activations (at most)'] = 4 * (
            tokens * width * (24 * layers + 6)
            + 3 * layers * heads * tokens * rows_
            + 3 * negatives
            + 2 * 512 * (sizes.num_items + config.train.num_neg * width)
        )
    rows['scores of a validation batch'] = 8 * config.eval.batch_size * sizes.num_items
    return rows


def _table_width(name: str, source: str, sizes: DataSizes) -> int:
    finished = (Path(source) / 'embeddings.safetensors').is_file()
    if finished or source.startswith(('features:', 'random:')):
        return table_width(source, sizes.features, f'llm.tables.{name}')
    return EMBEDDING_WIDTH  # of a run that is still to come, or to end


def _phase_two(config: Config, sizes: DataSizes) -> dict[str, int]:
    from hellm_pyg.llm.head import ItemHead
    from hellm_pyg.llm.prefix import GraphPrefix
    from hellm_pyg.llm.projector import FusedProjector

    llm = config.llm
    assert llm is not None
    shape = backbone_shape(os.path.expandvars(llm.name), llm.num_layers)
    widths = {
        name: _table_width(name, os.path.expandvars(source), sizes)
        for name, source in llm.tables.items()
    }
    read = {'token': llm.token, 'train_tables': llm.train_tables}
    if llm.prefix is not None:
        read['prefix.embedding'] = [str(llm.prefix.get('embedding', 'graph'))]
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
            own = dict(llm.prefix)
            pooled = own.pop('embedding', 'graph')
            prefix = GraphPrefix(
                widths[pooled],
                shape.hidden_size,
                shape.num_layers,
                scope=llm.scope,
                **checked_arguments(GraphPrefix, own, 'llm.prefix', PREFIX_FROM_LLM),
            )
    low = config.train.precision == 'bf16'
    lora = lora_parameters(llm, shape)
    trained_tables = sum(sizes.num_items * widths[name] for name in llm.train_tables)
    number = lora + _count(prefix) + _count(projector) + _count(head) + trained_tables
    weight = 2 if low else 4
    linear = shape.num_linear * weight
    if llm.load_in_4bit:  # 4 bits and doubly quantised scales
        linear = int(shape.num_linear * 0.516)
    frozen = sum(buffer.numel() for buffer in head.buffers())
    return {
        'backbone': linear + shape.num_other * weight,
        'LoRA': 4 * lora,
        'prefix': 4 * _count(prefix),
        'projector': 4 * _count(projector),
        'item head': 4 * (_count(head) + frozen),
        'item tables': 4 * sizes.num_items * sum(widths.values()),
        **_trained(number),
        'activations (at most)': activation_bytes(config.train, llm, shape),
        'logits': min(LOGITS, 8 * _tokens(config.train) * sizes.num_items),
    }


def lora_parameters(llm: LLMConfig, shape: BackboneShape) -> int:
    """Returns the number of LoRA's weights."""
    rank = parse((llm.lora or {}).get('r', 8), int, 'llm.lora.r', 'LoraConfig')
    if rank < 1:
        raise ValueError(f"'llm.lora.r' needs to be at least 1 (got {rank})")
    return shape.num_layers * sum(rank * (a + b) for a, b in _targets(llm, shape))


def _targets(llm: LLMConfig, shape: BackboneShape) -> list[tuple[int, int]]:
    if llm.lora is None:
        return []
    given, key = llm.lora.get('target_modules'), 'llm.lora.target_modules'
    names = parse(given, list[str] | str | None, key, 'LoraConfig')
    names = names or ['q_proj', 'v_proj']
    maps = shape.maps
    return [maps[name] for name in maps if names == 'all-linear' or name in names]


def activation_bytes(train: TrainConfig, llm: LLMConfig, shape: BackboneShape) -> int:
    """Bounds what the backward pass of the language model keeps.

    Every row is taken to be ``max_len`` items long. With activation checkpointing
    a layer keeps its input, and one layer at a time the rest.
    """
    length = train.max_len
    rows = max(1, _tokens(train) // length)
    shared = PROMPT_TOKENS
    if llm.scope == 'user':
        length, shared = length + PROMPT_TOKENS, 0
    tokens = rows * length + shared
    slots = int((llm.prefix or {}).get('num_tokens', 10)) if llm.prefix else 0
    keys = length + shared + slots
    size = 2 if train.precision == 'bf16' else 4
    query = shape.num_heads * shape.head_dim
    key = shape.num_key_value_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kept = tokens * size * (6 * hidden + 5 * query + 6 * key + 6 * inner)
    kept += tokens * 4 * 4 * hidden  # norms and the residual stream in fp32
    # Fused attention keeps no scores; a causal or gated prefix needs its own.
    own = llm.scope == 'causal' or (llm.prefix or {}).get('gate') == 'tanh'
    kept += (4 if own else 1) * 4 * rows * shape.num_heads * length * keys
    # LoRA keeps the mask and the result of the dropout on each input.
    kept += tokens * (size + 1) * sum(width for width, _ in _targets(llm, shape))
    if not train.activation_checkpointing:
        return shape.num_layers * kept
    return shape.num_layers * tokens * hidden * size + kept
