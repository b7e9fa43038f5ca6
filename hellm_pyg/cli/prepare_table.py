"""``hellm prepare table``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hellm_pyg.cli.arguments import (
    Cache,
    Device,
    ImageColumn,
    Images,
    TextEncoder,
    named_files,
)
from hellm_pyg.cli.prepare import report


class TimeUnit(StrEnum):
    """What a time that is a number counts."""

    s = 's'
    ms = 'ms'
    us = 'us'
    ns = 'ns'
    number = 'number'


class BadRows(StrEnum):
    """What becomes of rows without ids, times or ratings that can be read."""

    refuse = 'refuse'
    drop = 'drop'


def _column(what: str) -> Any:
    return typer.Option(metavar='COLUMN', help=f'{what}; guessed where it is clear.')


def prepare_table(
    interactions: Annotated[
        Path,
        typer.Option(
            metavar='FILE',
            help='CSV, TSV, Parquet, JSONL (each also .gz), or sequence text (.txt).',
        ),
    ],
    out: Annotated[Path, typer.Option('--out', '-o', help='Folder that is made.')],
    user: Annotated[str | None, _column('User ids')] = None,
    item: Annotated[str | None, _column('Item ids')] = None,
    time: Annotated[
        str | None, _column("Times ('' for none: rows are in order)")
    ] = None,
    rating: Annotated[str | None, _column('Ratings, for --min-rating')] = None,
    items: Annotated[
        Path | None, typer.Option(metavar='FILE', help='Table of the items.')
    ] = None,
    item_id: Annotated[str | None, _column('Ids in the table of the items')] = None,
    title: Annotated[str | None, _column('Titles')] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar='TEMPLATE',
            help="What is encoded, of the table's columns: '{name}. {brand}'; the "
            "title unless given, '' for no text features.",
        ),
    ] = None,
    text_encoder: TextEncoder = 'minilm',
    images: Images = None,
    image_column: ImageColumn = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            help='clip, a hub name or a folder; no image features without it.'
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar='NAME=FILE',
            help='Your own features: .npy or .safetensors whose rows follow the table '
            'of the items (repeatable).',
        ),
    ] = None,
    min_count: Annotated[
        int, typer.Option(help='k-core: of users and of items.', min=0)
    ] = 0,
    min_length: Annotated[
        int, typer.Option(help='Shortest history of a user.', min=0)
    ] = 0,
    min_rating: Annotated[
        float | None, typer.Option(help='Interactions rated below are dropped.')
    ] = None,
    val_from: Annotated[
        str | None,
        typer.Option(
            metavar='DATE',
            help='Hold-out by date in place of leave-one-out: validation begins. '
            '2024-05-31, or a number as the times are.',
        ),
    ] = None,
    test_from: Annotated[
        str | None, typer.Option(metavar='DATE', help='The test begins.')
    ] = None,
    time_unit: Annotated[
        TimeUnit | None, typer.Option(help='Of times that are numbers.')
    ] = None,
    bad_rows: Annotated[
        BadRows,
        typer.Option(help='Rows without ids, times or ratings that can be read.'),
    ] = BadRows.refuse,
    name: Annotated[
        str | None, typer.Option(help="Of the data; the folder's unless given.")
    ] = None,
    device: Device = None,
    cache: Cache = None,
) -> None:
    """Make your own tables (and pictures) ready: ids, k-core, features, graph.

    The folder holds the interactions that are kept, their items and features, the
    graph, a data card and dataset.yaml, which dataset=FOLDER of any recipe reads. It
    appears when it is complete; the same command after a stop goes on.

    \b
    hellm prepare table --interactions orders.parquet --items catalogue.csv --out shop
    hellm prepare table --interactions orders.parquet --user customer --item sku \\
        --time ordered_at --items catalogue.csv --text '{name}. {brand}' \\
        --images photos/ --image-encoder clip --min-count 5 --out shop
    hellm prepare table --interactions clicks.jsonl.gz --min-length 3 \\
        --val-from 2024-05-01 --test-from 2024-06-01 --out clicks
    hellm pretrain pretrain_best dataset=shop --out runs/shop/graph
    """
    from hellm_pyg.preparation import Encoding
    from hellm_pyg.preparation import prepare_table as prepare

    encoding = Encoding(
        text_encoder=text_encoder,
        images=images,
        image_column=image_column,
        image_encoder=image_encoder,
        device=device,
        cache=cache,
    )
    prepared = prepare(
        out,
        interactions,
        user=user,
        item=item,
        time=time,
        rating=rating,
        items=items,
        item_id=item_id,
        title=title,
        text=text,
        features=named_files(features or [], '--features'),
        encoding=encoding,
        min_rating=min_rating,
        min_count=min_count,
        min_length=min_length,
        val_from=val_from,
        test_from=test_from,
        time_unit=None if time_unit is None else time_unit.value,
        bad_rows=bad_rows.value,
        name=name,
    )
    report(prepared)
