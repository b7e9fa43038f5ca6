"""Arguments that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from hellm_pyg.config import Config, load_config

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar='RECIPE [A.B=C]...',
        help='Recipe file or name of a packaged one, then overrides; dataset=NAME '
        "picks one of the recipe's data sets, dataset=FOLDER a prepared folder.",
    ),
]
Out = Annotated[Path, typer.Option('--out', '-o', help='Folder of the run.')]
RunFolder = Annotated[Path, typer.Argument(metavar='RUN', help='Folder of a run.')]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar='A.B=C', help='Overrides.')
]
TextEncoder = Annotated[
    str, typer.Option(help='minilm (packaged), bert, a hub name or a folder.')
]
Images = Annotated[
    Path | None, typer.Option(metavar='FOLDER', help='Pictures of the items.')
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        metavar='COLUMN',
        help="File names of the pictures; without it, 'image' if there is such a "
        "column, otherwise files are named by the items' ids: SKU-7.jpg.",
    ),
]
Device = Annotated[
    str | None, typer.Option(help='Of the encoders; CUDA if there is one.')
]
Cache = Annotated[
    Path | None, typer.Option(metavar='FOLDER', help='Of what was encoded.')
]


def read_config(arguments: Sequence[str], extra: Iterable[str] = ()) -> Config:
    """The configuration that a recipe, or overrides alone, describe."""
    recipe = arguments[0]
    if '=' in recipe and not Path(recipe).is_file():
        return load_config(None, [*arguments, *extra])
    return load_config(recipe, [*arguments[1:], *extra])


def named_files(pairs: Sequence[str], option: str) -> dict[str, str]:
    """Modality to file, of an option that is given as NAME=FILE.

    Raises:
        ValueError: If one has another form, or a name comes twice.
    """
    files: dict[str, str] = {}
    for pair in pairs:
        modality, equals, file = pair.partition('=')
        if not (modality and equals and file):
            raise ValueError(
                f"'{option}' needs the form NAME=FILE, as 'text=text.npy' (got "
                f'{pair!r})'
            )
        if modality in files:
            raise ValueError(
                f"'{option}' names '{modality}' twice (got {files[modality]!r} and "
                f'{file!r})'
            )
        files[modality] = file
    return files
