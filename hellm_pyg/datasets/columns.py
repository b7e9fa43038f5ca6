"""Arrow columns to ids, numbers and free values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hellm_pyg.datasets.rows import RowCheck

if TYPE_CHECKING:
    import pyarrow

    from hellm_pyg.datasets.ids import Id

# As an integer prints: '007', '+7' and '7.0' stay text. 18 digits fit int64.
INTEGER = r'^(0|-?[1-9][0-9]{0,17})$'
DECIMAL = r'^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$'
NUMBER = r'^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$'
# What programs write for 'nothing', in lower case.
MISSING = ('', 'nan', 'null', 'none', '<na>', 'nat')
MAX_ID = 1024


def encode_ids(
    column: pyarrow.ChunkedArray, name: str, role: str, rows: RowCheck
) -> tuple[list[Id], NDArray[np.int64]]:
    r"""The distinct ids of a column, ascending, and the position of each row's id.

    Text whose every id is written as an integer becomes integers, in numeric
    order; other text is ordered by code point.

    Args:
        column: Integers, whole floats or text, of length :math:`N`.
        name: Column, for messages.
        role: What the ids are of, for counts.
        rows: Is told of rows without an id: null, NaN, or empty text.

    Returns:
        The ids, of length :math:`M`, and codes :math:`0 \ldots M-1` of shape
        :math:`[N]`, -1 where an id is missing.

    Raises:
        ValueError: If a missing id is refused, or an id cannot be one.
    """
    import pyarrow as pa

    column = decoded(column)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _encode_numbers(column, name, role, rows)
    if pa.types.is_temporal(kind):
        column = column.cast(pa.string())
    elif not (is_text(kind) or pa.types.is_null(kind)):
        raise ValueError(
            f"'{rows.source}': column '{name}' needs integers or text as ids "
            f'(got {kind}); write them as text'
        )
    return _encode_text(column.cast(pa.large_string()), name, role, rows)


def _encode_numbers(
    column: pyarrow.ChunkedArray, name: str, role: str, rows: RowCheck
) -> tuple[list[Id], NDArray[np.int64]]:
    missing = null_mask(column)
    values = (column.fill_null(0) if column.null_count else column).to_numpy()
    if values.dtype.kind == 'f':
        missing = missing | np.isnan(values)
        values = np.where(missing, 0.0, values)
        # Above 2^53 neighbouring integers share a float: the ids are already lost.
        bad = (values != np.floor(values)) | (np.abs(values) > 2**53)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"'{rows.source}': column '{name}' needs integers or text as ids in "
                f'row {row + 1} (got {values[row]})'
            )
        values = values.astype(np.int64)
    _tell_missing(rows, missing, name, role)
    if not missing.any():
        ids, code = _distinct(values)
        return ids.tolist(), code
    ids, present = _distinct(values[~missing])
    code = np.full(values.size, -1)
    code[~missing] = present
    return ids.tolist(), code


def _distinct(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values that occur, ascending, and each one's position among them."""
    if values.size and values.dtype != np.uint64:
        low, high = int(values.min()), int(values.max())
        if high - low < 4 * values.size:  # a table of what occurs beats sorting
            offset = values.astype(np.int64) - low
            occurs = np.zeros(high - low + 1, dtype=bool)
            occurs[offset] = True
            return np.flatnonzero(occurs) + low, (occurs.cumsum() - 1)[offset]
    ids, code = np.unique(values, return_inverse=True)
    return ids, code.astype(np.int64)


def _encode_text(
    column: pyarrow.ChunkedArray, name: str, role: str, rows: RowCheck
) -> tuple[list[Id], NDArray[np.int64]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    encoded = column.dictionary_encode('encode').combine_chunks()
    texts = encoded.dictionary
    code = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(texts))
    missing = pc.fill_null(pc.is_in(plain, pa.array(MISSING, plain.type)), True)
    missing = missing.to_numpy(zero_copy_only=False) | null_mask(texts)
    _tell_missing(rows, missing[code], name, role)
    broken = matches(texts, r'[\r\n]')
    long = np.asarray(pc.utf8_length(texts)) > MAX_ID
    for bad, fault in (
        (broken, 'has a line break within an id, or a quote is not closed,'),
        (long, f'has an id of more than {MAX_ID} characters'),
    ):
        bad = bad & ~missing
        if bad.any():
            row = int(bad[code].argmax())
            shown = texts[code[row]].as_py()[:40]
            raise ValueError(
                f"'{rows.source}': column '{name}' {fault} in row {row + 1} (got "
                f'{shown!r} ...); mend or remove the row'
            )
    present = np.flatnonzero(~missing)
    texts = texts.take(pa.array(present))
    if pc.all(pc.match_substring_regex(texts, INTEGER)).as_py():
        texts = texts.cast(pa.int64())
    order = pc.sort_indices(texts).to_numpy().astype(np.int64)
    rank = np.full(missing.size, -1)
    rank[present[order]] = np.arange(order.size)
    return texts.take(pa.array(order)).to_pylist(), rank[code]


def _tell_missing(
    rows: RowCheck, missing: NDArray[np.bool_], name: str, role: str
) -> None:
    rows(
        missing,
        f'missing {role}',
        lambda row: f"column '{name}' is missing a value in row {row + 1}",
    )


def read_numbers(
    column: pyarrow.ChunkedArray, name: str, role: str, rows: RowCheck
) -> NDArray[np.float64]:
    """A column of numbers, as numbers or as text.

    Args:
        column: The column, of length :math:`N`.
        name: Column, for messages.
        role: What the numbers are, for counts.
        rows: Is told of missing, unreadable and infinite ones, which become 0.

    Raises:
        ValueError: If a bad row is refused, or the column is of another type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = decoded(column)
    null = null_mask(column)
    rows(
        null,
        f'missing {role}',
        lambda row: f"column '{name}' is missing a value in row {row + 1}",
    )
    given = column
    if is_text(column.type):
        good = matches(column, NUMBER)
        rows(~good & ~null, f'missing {role}', _needs(given, name, 'a number'))
        column = pc.if_else(pa.array(good), column, '0').cast(pa.float64())
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ValueError(
            f"'{rows.source}': column '{name}' needs numbers (got {column.type})"
        )
    values = column.fill_null(0).to_numpy().astype(np.float64)
    bad = ~np.isfinite(values)
    rows(bad, f'missing {role}', _needs(given, name, 'a finite number'))
    return np.where(bad, 0.0, values)


def _needs(
    column: pyarrow.ChunkedArray, name: str, wanted: str
) -> Callable[[int], str]:
    return lambda row: (
        f"column '{name}' needs {wanted} in row {row + 1} (got {column[row].as_py()!r})"
    )


def read_values(column: pyarrow.ChunkedArray, text_format: bool) -> list[Any]:
    """A free column as a list: missing text is ``''``, other missing :obj:`None`.

    Args:
        column: Any column, of length :math:`N`.
        text_format: Whether the file has no types, so that a column written
            in integers or in numbers throughout is meant as such.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = decoded(column)
    kind = column.type
    if text_format:
        empty = pc.equal(column, '')
        filled = pc.if_else(empty, pa.scalar(None, pa.string()), column)
        for pattern, target in ((INTEGER, pa.int64()), (DECIMAL, pa.float64())):
            if pc.all(pc.match_substring_regex(filled, pattern)).as_py():
                return filled.cast(target).to_pylist()
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.string())
    if is_text(column.type):
        column = pc.fill_null(column, '')
    return column.to_pylist()


def decoded(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """The column without a dictionary, and as text of the kind that has kernels."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        kind = column.type.value_type
        if pa.types.is_string_view(kind):  # as polars has it; no kernel decodes it
            kind = pa.large_string()
        chunks = [
            chunk.dictionary.cast(kind).take(chunk.indices) for chunk in column.chunks
        ]
        column = pa.chunked_array(chunks, kind)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    return column


def is_text(kind: pyarrow.DataType) -> bool:
    """Whether a type is text."""
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def null_mask(column: pyarrow.ChunkedArray | pyarrow.Array) -> NDArray[np.bool_]:
    """Which values are null, of shape :math:`[N]`."""
    import pyarrow.compute as pc

    if column.null_count == 0:
        return np.zeros(len(column), dtype=bool)
    return np.asarray(pc.is_null(column))


def matches(
    column: pyarrow.ChunkedArray | pyarrow.Array, pattern: str
) -> NDArray[np.bool_]:
    """Which texts hold a pattern, of shape :math:`[N]`; null does not."""
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.match_substring_regex(column, pattern), False))
