"""A table of new items, described as the catalogue of a run is."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hellm_pyg.assembly.paths import resolve_data
from hellm_pyg.checkpoint import load_metadata
from hellm_pyg.config import DataConfig
from hellm_pyg.data.features import missing_rows
from hellm_pyg.datasets.features import ENDINGS, read_features
from hellm_pyg.datasets.ids import Id
from hellm_pyg.datasets.item_table import ItemTable, read_items
from hellm_pyg.datasets.tables import TABLES, checked_file
from hellm_pyg.experiment.evaluation import Run
from hellm_pyg.new_items import NewItems

# What two encodings of the same modality need to have in common, on a card.
ENCODER = ('weights', 'config', 'pooling', 'normalize', 'max_length', 'template')

logger = logging.getLogger(__name__)


def read_new_items(
    run: Run,
    items: str | os.PathLike[str],
    features: Mapping[str, str | os.PathLike[str]] | None = None,
    *,
    device: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> NewItems:
    """Reads the items of a table that a run does not know.

    The table has the columns of the run's catalogue, and may be the whole catalogue of
    today: items that are known are passed over. Texts are encoded as those of the
    catalogue were, if ``hellm prepare`` or ``hellm features`` has encoded them. Items
    without any features are left out, and a warning tells how many.

    Args:
        run: The run.
        items: CSV, TSV, Parquet or JSON lines.
        features: Modality to a matrix (``.npy``, ``.safetensors``) whose rows follow
            the table, made by the encoder of the catalogue's.
        device: Of the text encoder.
        cache: Folder of what was encoded; see
            :func:`~hellm_pyg.llm.encode_features`.
        progress: Whether to show a progress bar (in a terminal).

    Raises:
        ValueError: If the table or a matrix cannot be used, a modality is none of
            the run's or of another encoder, or there is none to compare by.
    """
    config = resolve_data(run.config.data)
    given = {name: Path(path).expanduser() for name, path in (features or {}).items()}
    for name, path in given.items():
        if name not in config.features:
            raise ValueError(
                f"'features' needs modalities of the run's items (got '{name}', they "
                f'have {list(config.features) or "none"})'
            )
        checked_file(path, 'features', ENDINGS, compressed=False)
    source = checked_file(Path(items).expanduser(), 'items', list(TABLES))
    table = read_items(source, config.item_id, config.title)
    known = {str(item) for item in run.ids.known_items(table.ids)}
    row = [index for index, item in enumerate(table.ids) if str(item) not in known]
    found = {
        name: _given(name, path, config, table)[row] for name, path in given.items()
    }
    if 'text' in config.features and 'text' not in given and row:
        card = _card(config.features['text'], 'text')
        if card is not None:
            found['text'] = _encoded(card, config, table, row, device, cache, progress)
    if row and not found:
        raise ValueError(
            f"'features' needs features of the new items in a modality of the run's, "
            f'{list(config.features) or "which has none"} (got none): write the file '
            f"with 'hellm features'"
        )
    return _described(
        [table.ids[index] for index in row],
        found,
        None if table.titles is None else [table.titles[index] for index in row],
        source,
    )


def _described(
    ids: list[Id], features: dict[str, Tensor], titles: list[str] | None, source: Path
) -> NewItems:
    """The items that have features; a warning tells of others."""
    missing = torch.ones(len(ids), dtype=torch.bool)
    for x in features.values():
        missing &= missing_rows(x)
    if bool(missing.any()):
        bare = missing.nonzero().view(-1).tolist()
        logger.warning(
            "'%s': %d of %d new items are left out, as they have no features: %r%s",
            source.name,
            len(bare),
            len(ids),
            ids[bare[0]],
            ', ...' if len(bare) > 1 else '',
        )
    kept = (~missing).nonzero().view(-1).tolist()
    return NewItems(
        [ids[index] for index in kept],
        {name: x[kept] for name, x in features.items()},
        None if titles is None else [titles[index] for index in kept],
    )


def _given(name: str, path: Path, config: DataConfig, table: ItemTable) -> Tensor:
    """A matrix of the user's, which needs to be of the catalogue's encoder."""
    x = read_features(path, name, table.ids, "the rows of 'items'")
    own, known = _card(path, name), _card(config.features[name], name)
    if own is not None and known is not None:
        _check_encoder(name, own, known)
    return x


def _encoded(
    card: Mapping[str, Any],
    config: DataConfig,
    table: ItemTable,
    row: list[int],
    device: str | None,
    cache: str | os.PathLike[str] | None,
    progress: bool,
) -> Tensor:
    """The texts of rows of the table, by the encoder that a card tells of."""
    from hellm_pyg.llm import TextFeatures

    transform = TextFeatures(
        card['encoder'],
        card['template'],
        pooling=card['pooling'],
        normalize=card['normalize'],
        max_length=card['max_length'],
        precision=card['precision'],
        device=device,
        cache=cache,
        progress=progress,
    )
    columns = table.named(config.item_id, config.title)
    x, own = transform.encode(
        {name: [values[index] for index in row] for name, values in columns.items()}
    )
    _check_encoder('text', own, card)
    return x


def _card(path: str | Path, modality: str) -> dict[str, Any] | None:
    """What a file tells of the encoder of a modality, if it is one of ours."""
    if Path(path).suffix.lower() != '.safetensors':
        return None
    try:
        header = json.loads(load_metadata(path).get('features', '{}'))
        card = header['cards'][modality]
    except (ValueError, KeyError, TypeError):  # of another program
        return None
    return card if isinstance(card, dict) and 'encoder' in card else None


def _check_encoder(name: str, own: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in ENCODER:
        if own.get(key) != known.get(key):
            raise ValueError(
                f"'features' of '{name}' need the encoder of the known items, "
                f'{known["encoder"]!r} with {key}={known.get(key)!r} (got '
                f'{own["encoder"]!r} with {key}={own.get(key)!r})'
            )
