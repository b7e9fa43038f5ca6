"""One matrix a modality, with rows for items that have no features."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hellm_pyg.checkpoint import load_metadata

ENDINGS = ('.npy', '.safetensors')


def items_hash(ids: Sequence[Any]) -> str:
    """SHA-256 of the ids that the rows of a file follow; ``'7'`` and ``7`` are one."""
    text = json.dumps([str(value) for value in ids])
    return hashlib.sha256(text.encode()).hexdigest()


def features_header(
    ids: Sequence[Any], cards: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """What the header of a file tells: the items of its rows, and its encoders.

    Args:
        ids: The ids that the rows follow.
        cards: Modality to what its features were made by and with.
    """
    # One entry: the order of several differs from call to call.
    return {'features': json.dumps({'items': items_hash(ids), 'cards': cards})}


def read_cards(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The cards that :func:`features_header` has written into a file, if any.

    Raises:
        ValueError: If a ``.safetensors`` file is damaged.
    """
    if Path(path).suffix.lower() != '.safetensors':
        return {}
    content = _header(load_metadata(Path(path)).get('features'))
    cards = content.get('cards')
    return cards if isinstance(cards, dict) else {}


def read_features(
    path: Path, modality: str, items: Sequence[Any], rows_of: str
) -> Tensor:
    r"""Reads a feature matrix and checks it.

    An ``.npy`` file holds the matrix. A ``.safetensors`` file holds it under the
    modality's name or as the only tensor, beside an optional tensor ``mask`` of
    shape :math:`[R]` that is true where a row has features. A header that tells the
    items of the rows, as ``hellm features`` writes it, is compared with ``items``.

    Args:
        path: The file.
        modality: Name of the modality.
        items: The ids that the :math:`R` rows need to follow.
        rows_of: What the rows follow, for messages.

    Returns:
        float32 of shape :math:`[R, F]`; missing rows are NaN throughout.

    Raises:
        ValueError: If the matrix is of other items, has another number of rows, no
            columns, an infinite value, or a row of which only a part is NaN.
    """
    num_rows = len(items)
    where = f"'features' of '{modality}' ('{path}')"
    mask = None
    if path.suffix.lower() == '.npy':
        x = _read_numpy(path, where)
    else:
        x, mask = _read_safetensors(path, modality, where)
        _check_items(path, items, rows_of, where)
    if x.dim() != 2 or x.size(1) == 0:
        raise ValueError(f'{where} needs a matrix (got shape {tuple(x.shape)})')
    if x.size(0) != num_rows:
        raise ValueError(
            f'{where} needs {num_rows} rows, one for each of {rows_of} '
            f'(got {x.size(0)})'
        )
    x = x.to(torch.float32)
    if mask is not None:
        if mask.shape != (num_rows,):
            raise ValueError(
                f"{where} needs a 'mask' of shape ({num_rows},) "
                f'(got {tuple(mask.shape)})'
            )
        x[~mask.bool()] = torch.nan
    _check_values(x, where)
    return x


def _check_items(path: Path, items: Sequence[Any], rows_of: str, where: str) -> None:
    header = _header(load_metadata(path).get('features'))
    if header.get('items') not in (None, items_hash(items)):
        raise ValueError(
            f'{where} was made for another catalogue, or for its items in another '
            f'order (got other ids in its header than {rows_of}): encode it again '
            "with 'hellm features'"
        )


def _header(text: str | None) -> dict[str, Any]:
    """What a header tells; nothing if it is another program's."""
    try:
        content = json.loads(text or '{}')
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _check_values(x: Tensor, where: str) -> None:
    infinite = x.isinf().any(dim=1)
    if infinite.any():
        row = int(infinite.int().argmax())
        raise ValueError(f'{where} needs finite values (got Inf in row {row}, from 0)')
    nan = x.isnan()
    missing = nan.all(dim=1)
    partial = nan.any(dim=1) & ~missing
    if partial.any():
        row = int(partial.int().argmax())
        raise ValueError(
            f'{where} marks a missing row by NaN throughout (got {int(nan[row].sum())} '
            f'NaN of {x.size(1)} values in row {row}, from 0)'
        )
    if missing.all():
        raise ValueError(f'{where} has no row with features (all are NaN or masked)')


def _read_numpy(path: Path, where: str) -> Tensor:
    try:
        array = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f'{where} cannot be read: {error}') from error
    if not isinstance(array, np.ndarray):
        raise ValueError(
            f'{where} needs one matrix (got an archive of several arrays, .npz); save '
            f"it with 'numpy.save'"
        )
    if array.dtype.kind not in 'fiub':
        raise ValueError(f'{where} needs numbers (got {array.dtype})')
    with np.errstate(over='ignore'):
        return torch.from_numpy(array.astype(np.float32))


def _read_safetensors(
    path: Path, modality: str, where: str
) -> tuple[Tensor, Tensor | None]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f'{where} cannot be read: {error}') from error
    mask = tensors.pop('mask', None)
    if modality in tensors:
        return tensors[modality], mask
    if len(tensors) != 1:
        raise ValueError(
            f"{where} needs a tensor named '{modality}', or a single one "
            f'(got {sorted(tensors)})'
        )
    return tensors.popitem()[1], mask
