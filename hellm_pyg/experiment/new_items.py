"""A table of new items, described as the catalogue of a run is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hellm_pyg.assembly.paths import resolve_data
from hellm_pyg.config import DataConfig
from hellm_pyg.data.features import missing_rows
from hellm_pyg.datasets.features import ENDINGS, read_cards, read_features
from hellm_pyg.datasets.ids import Id
from hellm_pyg.datasets.item_table import ItemTable, read_items
from hellm_pyg.datasets.item_text import fields
from hellm_pyg.datasets.tables import TABLES, checked_file
from hellm_pyg.experiment.evaluation import Run
from hellm_pyg.new_items import NewItems

# What two encodings of one modality need to have in common, on their cards.
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
    if not config.features:
        raise ValueError(
            f"'items' cannot be compared with those of '{run.folder}', whose data have "
            f"no features (got '{items}'): prepare them with texts, and train anew"
        )
    given = {name: Path(path).expanduser() for name, path in (features or {}).items()}
    for name, path in given.items():
        if name not in config.features:
            raise ValueError(
                f"'features' needs modalities of the run's items (got '{name}', they "
                f'have {list(config.features)})'
            )
        checked_file(path, 'features', ENDINGS, compressed=False)
    source = checked_file(Path(items).expanduser(), 'items', list(TABLES))
    table = read_items(source, config.item_id, config.title)
    known = {str(item) for item in run.ids.known_items(table.ids)}
    row = [index for index, item in enumerate(table.ids) if str(item) not in known]
    found = {
        name: _given(name, path, config, table, source)[row]
        for name, path in given.items()
    }
    card = None if 'text' in given else _text_card(config)
    if card is not None and row:
        columns = _columns(table, row, run, source, card['template'])
        found['text'] = _encoded(columns, card, device, cache, progress)
    if row and not found:
        raise ValueError(
            f"'features' needs features of the new items in a modality of the run's, "
            f"{list(config.features)} (got none): write them with 'hellm features', or "
            f'by the encoder of the catalogue'
        )
    titles = table.titles
    return _described(
        _ids([table.ids[index] for index in row], run),
        found,
        None if titles is None else [titles[index] for index in row],
        source,
    )


def _ids(ids: list[Id], run: Run) -> list[Id]:
    """Ids in the type of the run's, which one id of another kind may have changed."""
    if not all(isinstance(item, int) for item in run.ids.items):
        return ids
    return [int(item) if str(item).isdecimal() else item for item in ids]


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


def _given(
    name: str, path: Path, config: DataConfig, table: ItemTable, source: Path
) -> Tensor:
    """A matrix of the user's, which needs to be of the catalogue's encoder."""
    x = read_features(path, name, table.ids, f"the rows of '{source}'")
    own, known = read_cards(path), read_cards(config.features[name])
    if own and name not in own:
        raise ValueError(
            f"'features' of '{name}' need a file that holds them (got '{path}', which "
            f'holds {list(own)})'
        )
    if own and name in known:
        _check_encoder(name, own[name], known[name])
    return x


def _text_card(config: DataConfig) -> dict[str, Any] | None:
    """How the texts of the catalogue were encoded, if its file tells that."""
    if 'text' not in config.features:
        return None
    return read_cards(config.features['text']).get('text')


def _columns(
    table: ItemTable, row: list[int], run: Run, source: Path, template: str
) -> dict[str, list[Any]]:
    """What the template reads of some rows, in the types that the catalogue has."""
    config = run.config.data
    named = table.named(config.item_id, config.title)
    lacking = [name for name in fields(template) if name not in named]
    if lacking:
        raise ValueError(
            f"'items' needs the columns that the texts of the catalogue are made of, "
            f"{template!r} (got '{source}' without '{lacking[0]}')"
        )
    catalogue = run.data['item'].get('table') or {}
    return {
        name: _alike([named[name][index] for index in row], catalogue.get(name, []))
        for name in fields(template)
    }


def _alike(values: list[Any], known: Sequence[Any]) -> list[Any]:
    """Numbers in the type of the catalogue's: which one, CSV does not tell."""
    kinds = {type(value) for value in known if value is not None}
    if kinds == {float}:
        return [float(value) if type(value) is int else value for value in values]
    if kinds == {int}:
        return [
            int(value) if type(value) is float and value.is_integer() else value
            for value in values
        ]
    if kinds == {str}:
        return [
            f'{value:g}' if type(value) is float and value.is_integer() else value
            for value in values
        ]
    return values


def _encoded(
    columns: Mapping[str, Sequence[Any]],
    card: Mapping[str, Any],
    device: str | None,
    cache: str | os.PathLike[str] | None,
    progress: bool,
) -> Tensor:
    """Texts, by the encoder that a card tells of."""
    from hellm_pyg.llm import TextFeatures
    from hellm_pyg.llm.item_texts import item_texts

    texts = item_texts(columns, card['template'])
    if not any(texts):
        return torch.full((len(texts), card['dim']), torch.nan)
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
    try:
        x, own = transform.encode(columns)
        _check_encoder('text', own, card)
    except ValueError as error:
        raise ValueError(
            f"'items' need the encoder of the catalogue's texts, or 'features' of it: "
            f'{error}'
        ) from error
    return x


def _check_encoder(name: str, own: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in ENCODER:
        if own.get(key) != known.get(key):
            raise ValueError(
                f"'features' of '{name}' need the encoder of the known items, "
                f'{known["encoder"]!r} with {key}={known.get(key)!r} (got '
                f'{own["encoder"]!r} with {key}={own.get(key)!r})'
            )
