"""Features of a folder's items: encoded, or matrices that were given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import save_tensors
from hellm_pyg.datasets.features import features_header, read_cards
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.datasets.tables import require_column
from hellm_pyg.keys import in_words
from hellm_pyg.preparation.folder import FEATURES


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How texts and images of items become features.

    Args:
        text: Template, such as ``'{name}. {brand}'``; ``''`` for none.
        text_encoder: ``'minilm'`` (packaged), ``'bert'``, a hub name or a folder.
        images: Folder of the pictures.
        image_column: Column of the file names; files are named by the items'
            ids without one.
        image_encoder: ``'clip'``, a hub name or a folder; no image features if
            :obj:`None`.
        device: Where the encoders run.
        cache: Folder where what was encoded is kept; see
            :func:`~hellm_pyg.llm.encode_features`.
        progress: Whether to show progress bars.
    """

    text: str = ''
    text_encoder: str = 'minilm'
    images: str | os.PathLike[str] | None = None
    image_column: str | None = None
    image_encoder: str | None = None
    device: str | None = None
    cache: str | os.PathLike[str] | None = None
    progress: bool = True


Encoded = tuple[dict[str, str], dict[str, dict[str, Any]]]


def encode(
    folder: Path, items: Path, item_id: str, title: str | None, encoding: Encoding
) -> Encoded:
    """Encodes the items of a folder, a file a modality.

    What was encoded before is taken from the cache, so a stopped call goes on.

    Args:
        folder: The folder.
        items: Its table of items.
        item_id: Its id column.
        title: Its title column.
        encoding: How.

    Returns:
        Modality to file, relative to the folder; and modality to its card.

    Raises:
        ValueError: If an encoder cannot be loaded, or there is nothing to encode.
    """
    from hellm_pyg.llm.feature_files import encode_features

    common: dict[str, Any] = {
        'items': items,
        'item_id': item_id,
        'title': title,
        'device': encoding.device,
        'cache': encoding.cache,
        'progress': encoding.progress,
    }
    files: dict[str, str] = {}
    cards: dict[str, dict[str, Any]] = {}
    if encoding.text:
        files['text'] = f'{FEATURES}/text.safetensors'
        with in_words({'encoder': 'text_encoder', 'texts': 'text'}):
            cards |= encode_features(
                folder / files['text'],
                text=encoding.text,
                encoder=encoding.text_encoder,
                **common,
            )
    if encoding.images is not None and encoding.image_encoder is not None:
        files['image'] = f'{FEATURES}/image.safetensors'
        cards |= encode_features(
            folder / files['image'],
            images=encoding.images,
            image_column=encoding.image_column,
            image_encoder=encoding.image_encoder,
            **common,
        )
    return files, cards


def settings_of(
    cards: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """The cards of encoders without what went wrong with single items."""
    told = ('problems', 'reasons')
    return {
        modality: {key: value for key, value in card.items() if key not in told}
        for modality, card in cards.items()
    }


def pictures_of(cards: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many items have a picture that was read, and why others have none."""
    if 'image' not in cards:
        return {}
    card = cards['image']
    return {'read': card['items'] - card['missing'], **card['reasons']}


def save_features(
    data: HeteroData,
    ids: IdMap,
    folder: Path,
    sources: Mapping[str, str | os.PathLike[str]],
) -> dict[str, str]:
    """Writes the features that items have, with the cards of the files they are from.

    Args:
        data: The items.
        ids: Their ids.
        folder: The folder.
        sources: Modality to the file that its features were read from.

    Returns:
        Modality to file within the folder.
    """
    files = {}
    for name, x in data['item'].items():
        if name.startswith('x_'):
            modality = name.removeprefix('x_')
            files[modality] = f'{FEATURES}/{modality}.safetensors'
            cards = read_cards(sources[modality])
            header = features_header(
                ids.items, {modality: cards[modality]} if modality in cards else {}
            )
            save_tensors(folder / files[modality], {modality: x}, header)
    return files


def image_names(data: HeteroData, ids: IdMap, encoding: Encoding) -> list[str]:
    """The name of each item's picture within the folder of the pictures.

    Raises:
        ValueError: If there is no such folder or column, or no picture.
    """
    from hellm_pyg.llm.image_folder import checked_folder, find_images

    folder = checked_folder(encoding.images or '')
    table = data['item'].get('table') or {}
    column = encoding.image_column
    if column is None:
        column = 'image' if 'image' in table else None
    if column is None:
        return find_images(folder, ids.items)
    require_column(column, list(table), Path('items'), 'image_column')
    return [str(name or '') for name in table[column]]


def images_seen(names: Sequence[str], encoding: Encoding) -> str:
    """A sentence about how many items have a picture."""
    found = sum(
        bool(name) and Path(encoding.images or '', name).is_file() for name in names
    )
    seen = f"'{encoding.images}': {found} of {len(names)} items have a picture"
    if encoding.image_encoder is None:
        seen += ", which 'image_encoder' would make features of"
    return seen
