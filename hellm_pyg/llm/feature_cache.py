"""Encoded rows on disk, named by what they were made of, written shard by shard."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hellm_pyg.checkpoint import load_tensors, save_json, save_tensors

logger = logging.getLogger(__name__)

# Part of every key: raised whenever the same input gives other rows.
FORMAT = 1
# Rows to a file: what a killed run loses at most.
SHARD_SIZE = 512

Advance = Callable[[int], object]


def cache_folder(folder: str | os.PathLike[str] | None) -> Path:
    """The folder given, or ``hellm_pyg/features`` in the user's cache."""
    if folder is not None:
        return Path(folder).expanduser()
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(root) / 'hellm_pyg' / 'features'


def cache_key(settings: Mapping[str, Any], content: list[str]) -> str:
    """SHA-256 of an encoder's settings and of what it is given.

    Args:
        settings: Name to plain value. The name of the encoder has no part in the
            key, since its weights have.
        content: The texts, or the hashes of the images, in the order of the rows.
    """
    kept = {k: v for k, v in settings.items() if k != 'encoder'}
    text = json.dumps([FORMAT, kept, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the contents of all files of a folder, by their paths in it."""
    hashes = {}
    for path in sorted(folder.rglob('*')):
        if path.is_file():
            with path.open('rb') as file:
                digest = hashlib.file_digest(file, 'sha256')
            hashes[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return hashes


def cached_rows(
    folder: Path,
    settings: Mapping[str, Any],
    content: list[str],
    encode: Callable[[range, Advance], Tensor],
    description: str,
    progress: bool = True,
) -> tuple[Tensor, str]:
    r"""Rows from the cache; those that are not there are encoded and added.

    A run that is killed has lost the shard that it was at, and no more.

    Args:
        folder: The cache.
        settings: See :func:`cache_key`.
        content: What the rows are made of, of length :math:`N`.
        encode: Gives rows :math:`[n, F]` of a range; reports how many are done.
        description: Name of the progress bar.
        progress: Whether to show a progress bar (in a terminal).

    Returns:
        float32 of shape :math:`[N, F]`, and the key.

    Raises:
        ValueError: If the cache cannot be written to.
    """
    key = cache_key(settings, content)
    entry = folder / key
    if not (entry / 'settings.json').is_file():
        try:
            save_json(entry / 'settings.json', {'rows': len(content), **settings})
        except OSError as error:
            raise ValueError(
                f"'cache' needs a folder that can be written to (got '{folder}'): "
                f'{error}'
            ) from None
    shards: list[Tensor] = []
    with tqdm(
        desc=description,
        total=len(content),
        disable=None if progress else True,
    ) as bar:
        for start in range(0, len(content), SHARD_SIZE):
            rows = range(start, min(start + SHARD_SIZE, len(content)))
            path = entry / f'rows-{rows.start:09d}-{rows.stop:09d}.safetensors'
            x = _load(path, len(rows))
            if x is None:
                x = encode(rows, bar.update)
                save_tensors(path, {'x': x})
            else:
                bar.update(len(rows))
            shards.append(x)
    return torch.cat(shards), key


def _load(path: Path, num_rows: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        x = load_tensors(path)['x']
    except (KeyError, ValueError) as error:
        logger.warning('%s cannot be read and is made anew: %s', path, error)
        return None
    return x if x.dim() == 2 and x.size(0) == num_rows else None
