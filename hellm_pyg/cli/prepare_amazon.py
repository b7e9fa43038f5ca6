"""``hellm prepare amazon``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hellm_pyg.cli.arguments import Cache, Device, TextEncoder
from hellm_pyg.cli.prepare import report


class Release(StrEnum):
    """Year of the reviews' release."""

    y2014 = '2014'
    y2018 = '2018'
    y2023 = '2023'


TEMPLATE = '{title} {brand} {category} {description}'


def prepare_amazon(
    name: Annotated[
        str,
        typer.Option(help="Category, as in the files' names: Sports_and_Outdoors."),
    ] = 'Beauty',
    release: Annotated[Release, typer.Option(help='Release.')] = Release.y2014,
    root: Annotated[
        Path,
        typer.Option(help='Of raw files (in raw/RELEASE), images and the cache.'),
    ] = Path('data/amazon'),
    out: Annotated[
        Path | None,
        typer.Option('--out', '-o', help='Folder that is made; data/NAME-RELEASE.'),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar='URL',
            help="Folder of both files in place of the publishers' (repeatable: "
            'mirrors, in order).',
        ),
    ] = None,
    images: Annotated[
        bool, typer.Option('--images', help="Fetch the products' images.")
    ] = False,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            help='clip, a hub name or a folder; no image features without it.'
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            metavar='TEMPLATE', help="What is encoded; '' for no text features."
        ),
    ] = TEMPLATE,
    text_encoder: TextEncoder = 'minilm',
    min_count: Annotated[
        int, typer.Option(help='k-core: of users and of items.', min=0)
    ] = 5,
    val_from: Annotated[
        str | None,
        typer.Option(
            metavar='DATE',
            help='Hold-out by date in place of leave-one-out: validation begins.',
        ),
    ] = None,
    test_from: Annotated[
        str | None, typer.Option(metavar='DATE', help='The test begins.')
    ] = None,
    sha256: Annotated[
        list[str] | None,
        typer.Option(
            metavar='FILE=HASH', help='Known hash of a raw file (repeatable).'
        ),
    ] = None,
    device: Device = None,
    cache: Cache = None,
) -> None:
    """Download a category of Amazon's reviews and make it ready.

    Files that lie in the folder of raw files are taken from there; downloads and
    images that were stopped go on. The result is a folder as of 'prepare table'.

    \b
    hellm prepare amazon --name Beauty --out beauty
    hellm prepare amazon --name Toys --base-url https://mirror.example/amazon
    hellm prepare amazon --name All_Beauty --release 2023 --images \\
        --image-encoder clip --out beauty23
    hellm pretrain pretrain_best dataset=beauty --out runs/beauty/graph
    """
    from hellm_pyg.preparation import Encoding
    from hellm_pyg.preparation import prepare_amazon as prepare

    if image_encoder is not None and not images:
        raise ValueError(
            f"'--image-encoder' needs '--images', which fetches them (got "
            f'{image_encoder!r})'
        )
    encoding = Encoding(
        text_encoder=text_encoder,
        image_encoder=image_encoder,
        device=device,
        cache=cache,
    )
    prepared = prepare(
        out or Path('data') / f'{name}-{release.value}',
        name,
        release.value,
        root,
        base_urls=base_url or None,
        images=images,
        template=text,
        encoding=encoding,
        min_count=min_count,
        val_from=val_from,
        test_from=test_from,
        sha256=_hashes(sha256 or []),
    )
    report(prepared)


def _hashes(given: list[str]) -> dict[str, str]:
    """``FILE=HASH`` to name and hash."""
    for text in given:
        if '=' not in text:
            raise ValueError(f"'--sha256' needs FILE=HASH (got {text!r})")
    return dict(text.split('=', 1) for text in given)
