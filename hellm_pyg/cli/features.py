"""``hellm features``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hellm_pyg.cli.arguments import Cache, Device, ImageColumn, Images
from hellm_pyg.cli.output import print_table
from hellm_pyg.keys import in_words


class Pooling(StrEnum):
    """How a text's states become one vector."""

    cls = 'cls'
    mean = 'mean'
    projection = 'projection'


class Precision(StrEnum):
    """Numbers that the encoders compute in."""

    auto = 'auto'
    fp32 = 'fp32'
    bf16 = 'bf16'


def features(
    items: Annotated[
        Path,
        typer.Option(
            metavar='FILE', help='Table of the items: CSV, TSV, Parquet, JSONL (.gz).'
        ),
    ],
    out: Annotated[
        Path, typer.Option('--out', '-o', metavar='FILE', help='.safetensors file.')
    ],
    item_id: Annotated[
        str, typer.Option(metavar='COLUMN', help='Ids of the items.')
    ] = 'item_id',
    title: Annotated[
        str | None, typer.Option(metavar='COLUMN', help='Titles.')
    ] = 'title',
    text: Annotated[
        str | None,
        typer.Option(
            metavar='TEMPLATE',
            help="What is encoded: '{name}. {brand}'; unless given title, brand, "
            'category and description, as far as the table has them.',
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            '--text-encoder',
            help='minilm (packaged; unless only images are given), bert, a hub name '
            'or a folder.',
        ),
    ] = None,
    pooling: Annotated[
        Pooling | None, typer.Option(help="Unless given, the encoder's.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help='Tokens of a text that are read.', min=1)
    ] = None,
    images: Images = None,
    image_column: ImageColumn = None,
    image_encoder: Annotated[
        str, typer.Option(help='clip, a hub name or a folder.')
    ] = 'clip',
    precision: Annotated[
        Precision, typer.Option(help='Numbers that are computed in.')
    ] = Precision.auto,
    device: Device = None,
    cache: Cache = None,
) -> None:
    """Encode the texts and pictures of items, a row an item.

    The file holds 'text' and 'image'; rows of items without them are NaN. A stopped
    call goes on from its last shard, and what was encoded once is kept.

    \b
    hellm features --items catalogue.csv --item-id sku --text '{name}. {brand}' \\
        --out features.safetensors
    hellm features --items items.tsv --text-encoder bert --out bert.safetensors
    hellm features --items catalogue.csv --item-id sku --images photos/ \\
        --image-encoder clip --out images.safetensors
    hellm prepare table --interactions orders.csv --items catalogue.csv \\
        --features text=features.safetensors --text '' --out shop
    """
    from hellm_pyg.llm.feature_files import encode_features

    with in_words({'template': 'text', 'texts': 'text'}):
        cards = encode_features(
            out,
            items,
            item_id=item_id,
            title=title,
            text=text,
            encoder=encoder,
            pooling=None if pooling is None else pooling.value,
            max_length=max_length,
            images=images,
            image_column=image_column,
            image_encoder=image_encoder,
            precision=precision.value,
            device=device,
            cache=cache,
        )
    for modality, card in cards.items():
        rows = {name: value for name, value in card.items() if name != 'problems'}
        print_table(f'{out}: {modality}', rows)
