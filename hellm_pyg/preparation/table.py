"""A shop's own tables to a prepared folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

from torch_geometric.data import HeteroData

from hellm_pyg.config import DataConfig
from hellm_pyg.datasets import InteractionFiles
from hellm_pyg.datasets.export import export_tables
from hellm_pyg.datasets.provenance import table_provenance
from hellm_pyg.datasets.tables import SEQUENCES, TABLES, Source, as_source
from hellm_pyg.datasets.times import TimeUnit, read_moment
from hellm_pyg.preparation.columns import Columns, settle_columns
from hellm_pyg.preparation.encoding import (
    Encoding,
    encode,
    image_names,
    images_seen,
    pictures_of,
    save_features,
    settings_of,
)
from hellm_pyg.preparation.folder import (
    Prepared,
    complete,
    new_folder,
    refuse_one_date,
    split_line,
)
from hellm_pyg.transforms import HoldOutByDate

READING = 'reading'  # the graph before the split; gone when the folder is complete


def prepare_table(
    out: str | os.PathLike[str],
    interactions: Any,
    *,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    rating: str | None = None,
    items: Any = None,
    item_id: str | None = None,
    title: str | None = None,
    text: str | None = None,
    features: Mapping[str, str | os.PathLike[str]] | None = None,
    encoding: Encoding | None = None,
    min_rating: float | None = None,
    min_count: int = 0,
    min_length: int = 0,
    val_from: str | int | date | None = None,
    test_from: str | int | date | None = None,
    time_unit: TimeUnit | None = None,
    bad_rows: Literal['refuse', 'drop'] = 'refuse',
    name: str | None = None,
) -> Prepared:
    """Makes tables of interactions and items a folder that recipes read.

    The folder holds the interactions that are kept and their items, both in the
    original ids, the features, the graph, ``data_card.md`` (and ``.json``), and
    ``dataset.yaml``, which the override ``dataset=FOLDER`` of any recipe reads. It
    can be moved; its sources are not needed any more. It appears when it is
    complete.

    Columns that are not given are guessed where their names leave no doubt;
    ``notes`` of the result says so.

    Args:
        out: The folder: new, empty, or a prepared one, which is replaced.
        interactions: CSV, TSV, Parquet, JSON lines, sequence text, or a table of
            pandas, polars, Arrow, ...
        user: Column of the user ids.
        item: Column of the item ids.
        time: Column of the times; ``''`` if the order of the rows counts.
        rating: Column of the ratings, read for ``min_rating``.
        items: A table of the items, likewise.
        item_id: Its column of the ids.
        title: Its column of what is shown beside recommendations.
        text: Template of the items' texts, such as ``'{name}. {brand}'``; the
            title if :obj:`None` and ``features`` hold no ``'text'``, no text
            features if ``''``.
        features: Modality to a matrix (``.npy``, ``.safetensors``) whose rows
            follow ``items``.
        encoding: Encoders, and the pictures; its ``text`` is replaced by
            ``text``.
        min_rating: Interactions rated below are dropped.
        min_count: Users and items with fewer interactions are dropped (k-core).
        min_length: Users with fewer interactions are dropped.
        val_from: Validation begins here; with ``test_from`` a hold-out by date
            in place of leave-one-out. ISO 8601, a date, or a number in ``time_unit``;
            without one, a number since 1970 is told from its size as the times
            are, and 20240131 is a date.
        test_from: The test begins here.
        time_unit: Unit of times that are numbers; told from their size if
            :obj:`None`.
        bad_rows: Whether rows without ids or times are refused or dropped.
        name: Name of the data; the folder's if :obj:`None`.

    Raises:
        ValueError: On input that cannot be used; names file, column and row.
    """
    refuse_one_date(val_from, test_from)
    log = as_source(interactions, 'interactions', [SEQUENCES, *TABLES])
    catalogue = None if items is None else as_source(items, 'items')
    given = {'user': user, 'item': item, 'time': time, 'rating': rating}
    encoding, features = encoding or Encoding(), features or {}
    _refuse_twice(features, text, encoding)
    for key in ('image_encoder', 'image_column'):
        if encoding.images is None and (value := getattr(encoding, key)) is not None:
            raise ValueError(
                f"'{key}' needs 'images', the folder of the pictures (got {value!r}, "
                f'images=None)'
            )
    if 'text' in features:  # in place of the titles' encoding
        text = ''
    given |= {'item_id': item_id, 'title': title, 'text': text}
    columns = settle_columns(log, catalogue, given, min_rating is not None)
    name = name or Path(out).expanduser().absolute().name
    settings: dict[str, Any] = {
        'min_rating': min_rating,
        'min_count': min_count,
        'min_length': min_length,
        'time_unit': time_unit,
        'bad_rows': bad_rows,
    }
    with new_folder(out) as folder:
        dataset = InteractionFiles(
            folder / READING,
            _readable(log),
            *(columns.user, columns.item, columns.time, columns.rating),
            items=None if catalogue is None else _readable(catalogue),
            item_id=columns.item_id,
            title=columns.title,
            features=features,
            name=name,
            **settings,
        )
        report = dataset.report
        config = DataConfig(
            name=name,
            val_from=_moment('val_from', val_from, report, time_unit),
            test_from=_moment('test_from', test_from, report, time_unit),
            time=None if report['time']['unit'] == 'position' else 'time',
            time_unit='s' if report['time']['unit'] == 's' else 'number',
        )
        data = dataset[0]
        if config.val_from is not None and config.test_from is not None:
            HoldOutByDate(config.val_from, config.test_from)(data)  # or it is refused
        config, cards, pictures = _fill(
            folder, data, dataset, config, columns, encoding
        )
        del dataset, data
        shutil.rmtree(folder / READING)
        notes = [*columns.notes, *pictures]
        provenance = table_provenance(
            report,
            source='Own tables',
            template=columns.text,
            encoders=settings_of(cards),
            split=split_line(config),
            images=pictures_of(cards),
        )
        provenance = dataclasses.replace(
            provenance, notes=[*provenance.notes, *(f'{note}.' for note in notes)]
        )
        data, ids, few = complete(folder, config, provenance)
    return Prepared(Path(out), data, ids, [*notes, *few])


def _fill(
    folder: Path,
    data: HeteroData,
    dataset: InteractionFiles,
    config: DataConfig,
    columns: Columns,
    encoding: Encoding,
) -> tuple[DataConfig, dict[str, dict[str, Any]], list[str]]:
    """Writes tables and features; returns how they are read, and what was seen."""
    encoding = dataclasses.replace(encoding, text=columns.text)
    ids, notes = dataset.ids, []
    if encoding.images is not None:
        names = image_names(data, ids, encoding)
        if 'table' not in data['item']:
            data['item'].table = {'image': names}
        notes.append(images_seen(names, encoding))
    files = save_features(data, ids, folder, dataset.features)
    if files and ids.titles is None and 'table' not in data['item']:
        # A table of the items keeps the order that the rows of the features are in.
        data['item'].table = {'row': list(range(ids.num_items))}
    title = columns.title or 'title'
    paths = export_tables(data, ids, folder, columns.item_id, title)
    cards: dict[str, dict[str, Any]] = {}
    if 'items' in paths:
        encoded, cards = encode(
            folder, paths['items'], columns.item_id, columns.title, encoding
        )
        files |= encoded
    config = dataclasses.replace(
        config,
        interactions=paths['interactions'].name,
        user='user_id',
        item='item_id',
        items=paths['items'].name if 'items' in paths else None,
        item_id=columns.item_id,
        title=columns.title,
        features=files,
    )
    return config, cards, notes


def _readable(source: Source) -> Any:
    return source if isinstance(source, Path) else source.table


def _moment(
    name: str,
    value: str | int | date | None,
    report: Mapping[str, Any],
    unit: TimeUnit | None,
) -> str | int | None:
    """A date of a hold-out, as a number where the times are numbers."""
    if value is None:
        return None
    if report['time']['unit'] == 'position':
        raise ValueError(
            f"'{name}' needs interactions with times (got {value!r}, and the order of "
            f"the rows counts): name the column of the times as 'time'"
        )
    if report['time']['unit'] == 's':
        return read_moment(value, unit)
    try:
        return int(value)  # type: ignore[arg-type]  # a date is refused, too
    except (TypeError, ValueError):
        raise ValueError(
            f"'{name}' needs an integer, as the times of these interactions are (got "
            f'{value!r})'
        ) from None


def _refuse_twice(
    features: Mapping[str, Any], text: str | None, encoding: Encoding
) -> None:
    """A modality is encoded or given, and never replaced in silence."""
    images = encoding.images is not None and encoding.image_encoder is not None
    for name, encoder in (('text', text), ('image', images and 'image_encoder')):
        if name in features and encoder:
            raise ValueError(
                f"'{name}' features are given twice, by 'features' and by "
                f"'{'text' if name == 'text' else encoder}' (got "
                f"features={{'{name}': '{features[name]}'}}): leave one out, or call "
                f'that of the file otherwise'
            )
