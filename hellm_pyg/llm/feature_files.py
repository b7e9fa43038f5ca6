"""A table of items to a file of their features."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from hellm_pyg.checkpoint import save_json, save_tensors
from hellm_pyg.datasets.features import features_header
from hellm_pyg.datasets.item_table import read_items
from hellm_pyg.datasets.tables import TABLES, checked_file
from hellm_pyg.keys import in_words
from hellm_pyg.llm.features import ImageFeatures, TextFeatures
from hellm_pyg.llm.text_encoder import Pooling
from hellm_pyg.precision import Precision

ENDING = '.safetensors'


def encode_features(
    out: str | os.PathLike[str],
    items: str | os.PathLike[str],
    item_id: str = 'item_id',
    title: str | None = 'title',
    text: str | None = None,
    encoder: str | None = None,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    images: str | os.PathLike[str] | None = None,
    image_column: str | None = None,
    image_encoder: str = 'clip',
    precision: Precision = 'auto',
    device: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Encodes the texts and images of a table of items.

    The file holds the matrices ``text`` and ``image``, whose rows follow the table
    and are NaN where an item has none. Its header and ``<out>.json`` hold the cards.
    What is encoded is also kept in the cache, shard by shard, so that a call that
    was stopped goes on.

    Args:
        out: The file; ends in ``.safetensors``.
        items: CSV, TSV, Parquet or JSON lines.
        item_id: Column of the ids.
        title: Column of the titles, which templates name ``{title}``, too, where no
            other column has this name.
        text: Template, see :class:`~hellm_pyg.llm.TextFeatures`.
        encoder: Text encoder; ``'minilm'`` if :obj:`None`, but no text is encoded
            where images are and neither ``text`` nor ``encoder`` is given.
        pooling: Of the text encoder.
        max_length: Of the text encoder.
        images: Folder of the images; none are encoded if :obj:`None`.
        image_column: See :class:`~hellm_pyg.llm.ImageFeatures`.
        image_encoder: Image encoder.
        precision: Of both encoders.
        device: Of both encoders.
        cache: Folder of what is kept.
        progress: Whether to show progress bars (in a terminal).

    Returns:
        Modality to card.

    Raises:
        ValueError: If an argument or the table cannot be used, or there is nothing
            to encode.
    """
    out = Path(out).expanduser()
    if out.suffix != ENDING:
        raise ValueError(f"'out' needs to end in '{ENDING}' (got '{out}')")
    source = checked_file(Path(items), 'items', list(TABLES))
    card = out.with_suffix('.json')
    if card.exists() and card.samefile(source):
        raise ValueError(
            f"'out' needs another name than the table of items, which '{card}', the "
            f"file of the cards, would replace (got '{out}')"
        )
    table = read_items(source, item_id, title)
    columns = table.named(item_id, title)
    features: dict[str, Tensor] = {}
    cards: dict[str, dict[str, Any]] = {}
    if images is None or text is not None or encoder is not None:
        transform = TextFeatures(
            encoder or 'minilm',
            text,
            pooling=pooling,
            max_length=max_length,
            precision=precision,
            device=device,
            cache=cache,
            progress=progress,
        )
        features['text'], cards['text'] = transform.encode(columns)
    if images is not None:
        images_of = ImageFeatures(
            images,
            image_encoder,
            image_column,
            precision=precision,
            device=device,
            cache=cache,
            progress=progress,
        )
        with in_words({'encoder': 'image_encoder'}):
            features['image'], cards['image'] = images_of.encode(columns, table.ids)
    save_tensors(out, features, features_header(table.ids, cards))
    save_json(card, cards)
    return cards
