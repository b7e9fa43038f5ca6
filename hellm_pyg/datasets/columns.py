"""Arrow columns to ids, times and numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow

    from hellm_pyg.datasets.ids import Id

# As an integer prints: '007', '+7' and '7.0' stay text. 18 digits fit int64.
INTEGER = r'^(0|-?[1-9][0-9]{0,17})$'
DECIMAL = r'^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$'
NUMBER = r'^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$'


def encode_ids(
    column: pyarrow.ChunkedArray, path: Path, name: str
) -> tuple[list[Id], NDArray[np.int64]]:
    r"""The distinct ids of a column, ascending, and the position of each row's id.

    Text whose every id is written as an integer becomes integers, in numeric
    order; other text is ordered by code point.

    Args:
        column: Integers, whole floats or text, of length :math:`N`.
        path: Source, for messages.
        name: Column, for messages.

    Returns:
        The ids, of length :math:`M`, and codes :math:`0 \ldots M-1` of shape
        :math:`[N]`.

    Raises:
        ValueError: If an id is missing (null, NaN or empty) or no id.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _decoded(column)
    _refuse_null(column, path, name)
    if pa.types.is_floating(column.type):
        column = _whole_numbers(column, path, name)
    if pa.types.is_integer(column.type):
        ids, code = np.unique(column.to_numpy(), return_inverse=True)
        return ids.tolist(), code.astype(np.int64)
    if not _is_text(column.type):
        if not pa.types.is_temporal(column.type):
            raise ValueError(
                f"'{path}': column '{name}' needs integers or text as ids "
                f'(got {column.type})'
            )
        column = column.cast(pa.string())
    encoded = column.dictionary_encode().combine_chunks()
    texts = encoded.dictionary
    code = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    missing = pc.is_in(pc.utf8_lower(texts), pa.array(['', 'nan'], texts.type))
    if pc.any(missing).as_py():
        row = int(np.isin(code, np.flatnonzero(missing)).argmax())
        raise ValueError(_missing(path, name, row))
    if pc.all(pc.match_substring_regex(texts, INTEGER)).as_py():
        texts = texts.cast(pa.int64())
    order = pc.sort_indices(texts).to_numpy().astype(np.int64)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return texts.take(pa.array(order)).to_pylist(), rank[code]


def read_times(
    column: pyarrow.ChunkedArray, path: Path, name: str
) -> NDArray[np.generic]:
    """The times of a column in their full resolution: for sorting.

    Args:
        column: Integers, floats, dates, timestamps, or text that holds
            numbers or ISO 8601; without a zone, UTC is meant.
        path: Source, for messages.
        name: Column, for messages.

    Returns:
        int64 or float64 as given, or datetime64[us], of shape :math:`[N]`.

    Raises:
        ValueError: If a time is missing or cannot be parsed; names the row.
    """
    import pyarrow as pa

    column = _decoded(column)
    _refuse_null(column, path, name)
    if pa.types.is_integer(column.type):
        return _fits(column.to_numpy(), path, name).astype(np.int64)
    if pa.types.is_floating(column.type):
        return _fits(_finite(column.to_numpy(), path, name), path, name)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return _microseconds(column, getattr(column.type, 'tz', None))
    if _is_text(column.type):
        return _parse_times(column, path, name)
    raise ValueError(
        f"'{path}': column '{name}' needs numbers, dates or text as times "
        f'(got {column.type})'
    )


def whole_times(times: NDArray[np.generic]) -> NDArray[np.int64]:
    """Numbers, rounded down, keep their unit; dates become seconds since 1970."""
    if times.dtype.kind == 'M':
        times = times.astype('datetime64[s]')
    elif times.dtype.kind == 'f':
        times = np.floor(times.astype(np.float64))
    return times.astype(np.int64)


def read_numbers(
    column: pyarrow.ChunkedArray, path: Path, name: str
) -> NDArray[np.float64]:
    """A column of numbers, as numbers or as text.

    Raises:
        ValueError: If a number is missing or cannot be parsed; names the row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _decoded(column)
    _refuse_null(column, path, name)
    if _is_text(column.type):
        good = pc.match_substring_regex(column, NUMBER)
        if not pc.all(good).as_py():
            raise ValueError(_unparsable(column, good, path, name, 'a number'))
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ValueError(f"'{path}': column '{name}' needs numbers (got {column.type})")
    return _finite(column.to_numpy().astype(np.float64), path, name)


def read_values(column: pyarrow.ChunkedArray, text_format: bool) -> list[Any]:
    """A free column as a list: missing text is ``''``, other missing :obj:`None`.

    Args:
        column: Any column, of length :math:`N`.
        text_format: Whether the file has no types, so that a column written
            in integers or in numbers throughout is meant as such.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _decoded(column)
    kind = column.type
    if text_format:
        empty = pc.equal(column, '')
        filled = pc.if_else(empty, pa.scalar(None, pa.string()), column)
        for pattern, target in ((INTEGER, pa.int64()), (DECIMAL, pa.float64())):
            if pc.all(pc.match_substring_regex(filled, pattern)).as_py():
                return filled.cast(target).to_pylist()
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.string())
    if _is_text(column.type):
        column = pc.fill_null(column, '')
    return column.to_pylist()


def _decoded(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    return column


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _refuse_null(column: pyarrow.ChunkedArray, path: Path, name: str) -> None:
    import pyarrow.compute as pc

    if column.null_count:
        raise ValueError(
            _missing(path, name, pc.index(pc.is_null(column), True).as_py())
        )


def _missing(path: Path, name: str, row: int) -> str:
    return f"'{path}': column '{name}' is missing a value in row {row + 1}"


def _unparsable(
    column: pyarrow.ChunkedArray,
    good: pyarrow.ChunkedArray,
    path: Path,
    name: str,
    wanted: str,
) -> str:
    import pyarrow.compute as pc

    row = pc.index(good, False).as_py()
    return (
        f"'{path}': column '{name}' needs {wanted} in row {row + 1} "
        f'(got {column[row].as_py()!r})'
    )


def _finite(values: NDArray[np.float64], path: Path, name: str) -> NDArray[np.float64]:
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"'{path}': column '{name}' needs a finite number in row {row + 1} "
            f'(got {values[row]})'
        )
    return values


def _fits(values: NDArray[Any], path: Path, name: str) -> NDArray[Any]:
    # Beyond 64 bits a cast would wrap around, and reorder what is sorted by it.
    bad = (values >= 2.0**63) | (values < -(2.0**63))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"'{path}': column '{name}' needs times that fit into 64 bits in row "
            f'{row + 1} (got {values[row]})'
        )
    return values


def _whole_numbers(
    column: pyarrow.ChunkedArray, path: Path, name: str
) -> pyarrow.ChunkedArray:
    import pyarrow as pa

    values = column.to_numpy()
    if np.isnan(values).any():
        raise ValueError(_missing(path, name, int(np.isnan(values).argmax())))
    # Above 2^53 neighbouring integers share a float: the ids are already lost.
    bad = (values != np.floor(values)) | (np.abs(values) > 2**53)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"'{path}': column '{name}' needs integers or text as ids in row "
            f'{row + 1} (got {values[row]})'
        )
    return pa.chunked_array([values.astype(np.int64)])


def _microseconds(
    column: pyarrow.ChunkedArray, zone: str | None
) -> NDArray[np.datetime64]:
    import pyarrow as pa

    stamps = column.cast(pa.timestamp('us', tz=zone), safe=False)
    return stamps.cast(pa.int64()).to_numpy().view('datetime64[us]')


def _parse_times(
    column: pyarrow.ChunkedArray, path: Path, name: str
) -> NDArray[np.generic]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pc.all(pc.match_substring_regex(column, INTEGER)).as_py():
        return column.cast(pa.int64()).to_numpy()
    numeric = pc.match_substring_regex(column, NUMBER)
    if pc.all(numeric).as_py():
        values = _finite(column.cast(pa.float64()).to_numpy(), path, name)
        return _fits(values, path, name)
    wanted = 'a number or an ISO 8601 time'
    if pc.any(numeric).as_py():
        wanted = 'a number, as other rows have,'
        raise ValueError(_unparsable(column, numeric, path, name, wanted))
    for zone in (None, 'UTC'):
        try:
            return _microseconds(column.cast(pa.timestamp('us', tz=zone)), zone)
        except pa.ArrowInvalid:
            continue
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    stamps = np.empty(len(column), dtype=np.int64)
    for row, text in enumerate(column.to_pylist()):
        try:
            stamp = datetime.fromisoformat(text)
        except ValueError:
            good = pa.chunked_array([[True] * row + [False]])
            raise ValueError(_unparsable(column, good, path, name, wanted)) from None
        stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
        stamps[row] = (stamp - epoch) // timedelta(microseconds=1)
    return stamps.view('datetime64[us]')
