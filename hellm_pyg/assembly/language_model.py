"""From the section ``llm`` to a language-model recommender."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg import checkpoint
from hellm_pyg.assembly.data import item_features
from hellm_pyg.assembly.models import checked_arguments
from hellm_pyg.assembly.neighbors import item_neighbors
from hellm_pyg.assembly.paths import resolve_llm
from hellm_pyg.config import Config, LLMConfig, TrainConfig, nearest
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.held_out import check_tables
from hellm_pyg.keys import in_words_of
from hellm_pyg.precision import DTYPES, resolve_precision

if TYPE_CHECKING:
    from hellm_pyg.llm.recommender import LLMRecommender
    from hellm_pyg.nn import NeighborSmoothing

logger = logging.getLogger(__name__)

# Arguments of a prefix that the language model gives.
PREFIX_FROM_LLM = ('channels', 'hidden_size', 'num_layers', 'scope')
# Arguments that have another name in a recipe.
LLM_KEYS = {
    'item_embeddings': 'llm.tables',
    'token_embeddings': 'llm.token',
    'train_embeddings': 'llm.train_tables',
    'prefix_embedding': 'llm.prefix.embedding',
    'kind': 'llm.head',
    'adapter_channels': 'llm.head_channels',
    'num_layers': 'llm.projector_layers',
    'before': 'llm.instruction',
    'prompt': 'llm.instruction',
}


def item_table(
    name: str, source: str, data: HeteroData, ids: IdMap, seed: int = 0
) -> Tensor:
    """Returns a table that language models read items from, :math:`[I, d]`.

    Args:
        name: Name of the table, for messages.
        source: Run folder of phase 1, ``'features:<modality>'`` or
            ``'random:<width>'``.
        data: The data, on whose interactions the run must have been trained.
        ids: Their id map, which that of the run folder must equal.
        seed: Seed of a random table.

    Raises:
        ValueError: If there is no such table, or it is of other data.
    """
    key, num_items = f'llm.tables.{name}', int(data['item'].num_nodes)
    width = table_width(
        source, {m: x.size(1) for m, x in item_features(data).items()}, key
    )
    kind, _, rest = source.partition(':')
    if kind == 'features':
        return item_features(data)[rest]
    if kind == 'random':
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(num_items, width, generator=generator) / width**0.5
    check_catalogue(Path(source), ids)
    path = Path(source) / 'embeddings.safetensors'
    trained_on = checkpoint.load_metadata(path).get('split_fingerprint')
    if trained_on not in (None, data.get('split_fingerprint')):
        raise ValueError(
            f"'{key}' was trained on other interactions of the same users and items, "
            f'which may be held out here (got {source!r}): train it again on these data'
        )
    return checkpoint.load_tensors(path)['item']


def table_width(source: str, features: Mapping[str, int], key: str = 'table') -> int:
    """Returns the width of an :func:`item_table` without reading it.

    Raises:
        ValueError: If there is no such table.
    """
    kind, _, rest = source.partition(':')
    if kind == 'features':
        if rest not in features:
            way_out = (
                f'the nearest is {nearest(rest, features)!r}'
                if features
                else "there are none: leave it out of 'llm.tables' and 'llm.token'"
            )
            raise ValueError(
                f"'{key}' names features that the data lack (got {source!r}); {way_out}"
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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, 'pt') as file:
            _, width = file.get_slice('item').get_shape()
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"'{key}' needs a run whose file '{path}' holds a matrix 'item' (got "
            f'{source!r}): {error}; train it again'
        ) from None
    return int(width)


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
    from hellm_pyg.llm.prefix import GraphPrefix
    from hellm_pyg.llm.prompt import Prompt
    from hellm_pyg.llm.recommender import LLMRecommender

    if config.llm is None:
        raise ValueError("'llm' needs to be a section of the recipe (got null)")
    llm = resolve_llm(config.llm)
    check_backbone(llm)
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
    backbone, tokenizer = _build_backbone(llm, config.train)
    given = {'embedding': 'graph', **(llm.prefix or {})}
    embedding, prefix = str(given.pop('embedding')), None
    if llm.prefix is not None:
        own = checked_arguments(GraphPrefix, given, 'llm.prefix', PREFIX_FROM_LLM)
        pooled = own.get('pool', True)
        if pooled and embedding not in tables:
            raise ValueError(
                f"'llm.prefix.embedding' needs to be one of 'llm.tables' "
                f'{sorted(tables)} (got {embedding!r})'
            )
        with in_words_of(GraphPrefix, 'llm.prefix'):
            prefix = GraphPrefix(
                tables[embedding].size(1) if pooled else 1,  # read by pooling only
                backbone.config.hidden_size,
                backbone.config.num_hidden_layers,
                scope=llm.scope,
                **own,
            )
    smoothing = _smoothing(config, data, tables)
    model = LLMRecommender(
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
        head_dropout=llm.head_dropout,
        lora=llm.lora,
        max_len=config.train.max_len,
        dropout=llm.dropout,
        projector_layers=llm.projector_layers,
        candidates=llm.candidates,
        table_scale=llm.table_scale,
        train_backbone=llm.weights != 'frozen',
        smoothing=smoothing,
    )
    read = {llm.smoothing.embedding} if llm.smoothing else set()
    unread = sorted(set(tables) - set(model.tables.channels) - read)
    if unread:
        logger.warning(
            "'llm.tables' has %s, which none of 'llm.token', 'llm.prefix' and "
            "'llm.smoothing' reads",
            unread,
        )
    return model


def _smoothing(
    config: Config, data: HeteroData, tables: Mapping[str, Tensor]
) -> NeighborSmoothing | None:
    from hellm_pyg.nn import NeighborSmoothing

    assert config.llm is not None
    given = config.llm.smoothing
    if given is None:
        return None
    spaces = item_features(data) if given.modalities else {}
    if given.embedding is not None:
        if given.embedding not in tables:
            raise ValueError(
                f"'llm.smoothing.embedding' needs to be one of 'llm.tables' "
                f'{sorted(tables)} (got {given.embedding!r}): name one of them, or set '
                f'llm.smoothing=null'
            )
        source = config.llm.tables[given.embedding]
        if source.startswith('random:'):
            logger.warning(
                "'llm.smoothing.embedding' is %s, in which near items are not alike; "
                'name another table, or set llm.smoothing=null',
                source,
            )
        spaces = {**spaces, given.embedding: tables[given.embedding]}
    near = [
        item_neighbors(name, x, given.k, config.data.knn_index)
        for name, x in spaces.items()
    ]
    neighbor = torch.cat(near, dim=1) if near else torch.empty(0, 0)
    if neighbor.size(1) == 0:
        raise ValueError(
            f"'llm.smoothing' needs neighbours in some embedding (got {given}, and "
            f'modalities {sorted(item_features(data))}; three items or more need to '
            f'have one): set llm.smoothing=null'
        )
    return NeighborSmoothing(neighbor, given.weight)


def check_backbone(llm: LLMConfig) -> None:
    """Refuses settings of a backbone that contradict each other.

    Raises:
        ValueError: Names the ways out.
    """
    if llm.shape is not None and llm.weights != 'random':
        raise ValueError(
            f"'llm.shape' is that of pretrained weights with llm.weights={llm.weights} "
            f'(got {llm.shape}): set llm.weights=random, or llm.shape=null'
        )
    if llm.weights == 'frozen':
        return
    if llm.lora is not None:
        raise ValueError(
            f"'llm.lora' adapts weights that are not trained themselves (got "
            f'llm.weights={llm.weights}): set llm.lora=null, or llm.weights=frozen'
        )
    if llm.load_in_4bit:
        raise ValueError(
            f"'llm.load_in_4bit' is for weights that are not trained (got "
            f'llm.weights={llm.weights}): set llm.load_in_4bit=false, or '
            f'llm.weights=frozen'
        )


@in_words_of(LLMConfig, 'llm')
def _build_backbone(llm: LLMConfig, train: TrainConfig) -> tuple[Any, Any]:
    """Loads or draws a backbone, beside its tokenizer."""
    from hellm_pyg.llm.backbone import load_backbone
    from hellm_pyg.llm.random_backbone import random_backbone

    dtype = DTYPES[resolve_precision(train.precision)]
    if llm.weights == 'random':
        return random_backbone(llm.name, llm.num_layers, dtype, llm.shape, train.seed)
    return load_backbone(llm.name, llm.num_layers, dtype, llm.load_in_4bit)
