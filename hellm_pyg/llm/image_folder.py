"""Which image file of a folder belongs to which item."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hellm_pyg.datasets.ids import spelled

logger = logging.getLogger(__name__)

ENDINGS = ('.jpg', '.jpeg', '.png', '.gif', '.webp')


def find_images(folder: str | os.PathLike[str], ids: Sequence[Any]) -> list[str]:
    """Finds the images that are named by the items' ids, as ``SKU-7.jpg``.

    Args:
        folder: The folder; its own folders are not searched.
        ids: Ids of the items.

    Returns:
        The file name of each item, ``''`` where there is none.

    Raises:
        ValueError: If there is no such folder, or no file of any item.
    """
    folder = checked_folder(folder)
    names: dict[str, str] = {}
    repeated = 0
    for name in sorted(os.listdir(folder)):
        stem, ending = os.path.splitext(name)
        if ending.lower() in ENDINGS and not name.startswith('.'):
            stem = spelled(stem)  # some file systems take Unicode apart
            repeated += stem in names
            names.setdefault(stem, name)
    found = [names.get(spelled(str(value)), '') for value in ids]
    if not any(found):
        held = f"'{next(iter(names.values()))}'" if names else 'no image'
        raise ValueError(
            f"'images' needs a folder with files named by the items' ids, such as "
            f"'{next(iter(ids), 1)}.jpg' (got '{folder}' with {held}); or name the "
            f'column that holds the file names'
        )
    if repeated:
        logger.warning(
            '%s: %d images are passed over, since another one has the same name',
            folder,
            repeated,
        )
    return found


def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, if there is one.

    Raises:
        ValueError: If there is none.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"'images' is not a folder (got '{path}')")
    return path


def image_paths(names: Iterable[Any], folder: Path) -> list[Path | None]:
    """Paths of files within a folder, :obj:`None` where an item has no name.

    Raises:
        ValueError: If a name leads out of the folder.
    """
    paths: list[Path | None] = []
    for row, name in enumerate(names, start=1):
        if name is None or name != name or not str(name).strip():
            paths.append(None)
            continue
        inner = os.path.normpath(str(name).strip())
        if os.path.isabs(inner) or inner.split(os.sep)[0] == os.pardir:
            raise ValueError(
                f"'images' needs names of files within '{folder}' (got {name!r} in row "
                f'{row})'
            )
        paths.append(folder / inner)
    return paths
