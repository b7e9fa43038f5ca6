"""Arrow columns to ids, numbers and free values."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hellm_pyg.datasets.rows import RowCheck

if TYPE_CHECKING:
    import pyarrow

    from hellm_pyg.datasets.ids import Id

logger = logging.getLogger(__name__)

# As an integer prints: '007', '+7' and '7.0' stay text. 18 digits fit int64.
INTEGER = r'^(0|-?[1-9][0-9]{0,17})$'
DECIMAL = r'^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$'
NUMBER = r'^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$'
# As a spreadsheet saves a number of more digits than its cell shows: 1.23457E+12.
ROUNDED = r'^-?[0-9](\.[0-9]+)?E\+[0-9]{2,}$'
# What programs write for 'nothing', in lower case.
MISSING = ('', 'nan', 'null', 'none', '<na>', 'nat')
MAX_ID = 1024


def encode_ids(
    column: pyarrow.ChunkedArray, name: str, role: str, rows: RowCheck
) -> tuple[list[Id], NDArray[np.int64]]:
    r"""The distinct ids of a column, ascending, and the position of each row's id.

    Text is read without blanks around it and in Unicode's form NFC. If every id is
    written as an integer, it becomes integers, in numeric order; other text is
    ordered by code point.

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
        exact = exact_below(values.dtype)
        values = np.where(missing, 0.0, values).astype(np.float64)
        bad = (values != np.floor(values)) | (np.abs(values) >= exact)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"'{rows.source}': column '{name}' needs integers or text as ids in "
                f'row {row + 1} (got {values[row]} as {column.type}, in which whole '
                f'numbers are exact below {exact})'
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
    texts, code = _spelled_alike(encoded, name, rows)
    missing = missing_mask(texts)
    _tell_missing(rows, missing[code], name, role, column)
    long = np.asarray(pc.utf8_length(texts)) > MAX_ID
    mend = 'mend or remove the row'
    for bad, fault, remedy in (
        (
            matches(texts, r'[\r\n]'),
            'has a line break within an id, or a quote is not closed,',
            mend,
        ),
        (long, f'has an id of more than {MAX_ID} characters', mend),
        (
            matches(texts, ROUNDED),
            'has an id that a spreadsheet has rounded',
            'take the ids as text from where they come',
        ),
    ):
        bad = bad & ~missing
        if bad.any():
            row = int(bad[code].argmax())
            shown = texts[code[row]].as_py()
            shown = repr(shown) if len(shown) <= 40 else f'{shown[:40]!r} ...'
            raise ValueError(
                f"'{rows.source}': column '{name}' {fault} in row {row + 1} (got "
                f'{shown}); {remedy}'
            )
    present = np.flatnonzero(~missing)
    texts = texts.take(pa.array(present))
    if pc.all(pc.match_substring_regex(texts, INTEGER)).as_py():
        texts = texts.cast(pa.int64())
    order = pc.sort_indices(texts).to_numpy().astype(np.int64)
    rank = np.full(missing.size, -1)
    rank[present[order]] = np.arange(order.size)
    return texts.take(pa.array(order)).to_pylist(), rank[code]


def _spelled_alike(
    encoded: pyarrow.DictionaryArray, name: str, rows: RowCheck
) -> tuple[pyarrow.Array, NDArray[np.int64]]:
    """Texts as :func:`~hellm_pyg.datasets.ids.spelled` has them, and their codes."""
    import pyarrow.compute as pc

    given = encoded.dictionary
    code = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    texts = pc.utf8_normalize(pc.utf8_trim_whitespace(given), 'NFC')
    changed = np.asarray(pc.fill_null(pc.not_equal(texts, given), False))
    changed &= ~missing_mask(texts)
    if changed.any():
        logger.warning(
            "%s: %d ids of column '%s' are read without the blanks around them, and in "
            "Unicode's form NFC",
            rows.source,
            changed.sum(),
            name,
        )
    merged = texts.dictionary_encode('encode')
    return merged.dictionary, merged.indices.to_numpy().astype(np.int64)[code]


def _tell_missing(
    rows: RowCheck,
    missing: NDArray[np.bool_],
    name: str,
    role: str,
    texts: pyarrow.ChunkedArray | None = None,
) -> None:
    def message(row: int) -> str:
        text = None if texts is None else texts[row].as_py()
        got = f' (got {text!r}, which is read as missing)' if text else ''
        return f"column '{name}' is missing a value in row {row + 1}{got}"

    rows(missing, f'missing {role}', message)


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


def read_values(
    column: pyarrow.ChunkedArray, name: str, source: object, text_format: bool
) -> list[Any]:
    """A free column as a list: missing text is ``''``, other missing :obj:`None`.

    Values are text, numbers or lists of these: times and decimals become text, and
    what has further structure becomes JSON.

    Args:
        column: Any column, of length :math:`N`.
        name: Column, for messages.
        source: The file, for messages.
        text_format: Whether the file has no types, so that a column written
            in integers or in numbers throughout is meant as such, if each number
            prints as it is written.

    Raises:
        ValueError: If the column holds bytes that are no UTF-8.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = decoded(column)
    kind = column.type
    if text_format:
        empty = pc.equal(column, '')
        filled = pc.if_else(empty, pa.scalar(None, pa.string()), column)
        if pc.all(pc.match_substring_regex(filled, INTEGER)).as_py():
            return filled.cast(pa.int64()).to_pylist()
        if pc.all(pc.match_substring_regex(filled, DECIMAL)).as_py():
            written = filled.unique().drop_null().to_pylist()
            if all(repr(float(text)) in (text, f'{text}.0') for text in written):
                return filled.cast(pa.float64()).to_pylist()
    if is_bytes(kind):
        try:
            column = column.cast(pa.large_binary()).cast(pa.large_string())
        except pa.ArrowInvalid:
            raise ValueError(
                f"'{source}': column '{name}' needs text, numbers or lists of these "
                f'(got {kind}, not UTF-8); leave it out'
            ) from None
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.string())
    if is_text(column.type):
        column = pc.fill_null(column, '')
    values = column.to_pylist()
    if pa.types.is_map(kind):
        values = [
            None if pairs is None else {str(key): value for key, value in pairs}
            for pairs in values
        ]
    return values if _is_plain(column.type) else [_as_json(value) for value in values]


def _is_plain(kind: pyarrow.DataType) -> bool:
    import pyarrow as pa

    if is_list(kind) or pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    numbers = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
    others = is_text, pa.types.is_string_view, pa.types.is_null
    return any(is_kind(kind) for is_kind in (*numbers, *others))


def _as_json(value: Any) -> str:
    return '' if value is None else json.dumps(value, default=str, ensure_ascii=False)


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


def is_bytes(kind: pyarrow.DataType) -> bool:
    """Whether a type is bytes that may be no text."""
    import pyarrow as pa

    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def is_list(kind: pyarrow.DataType) -> bool:
    """Whether a type is lists, of one length or of several."""
    import pyarrow as pa

    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )


def exact_below(dtype: np.dtype[Any]) -> int:
    """From where on neighbouring integers share a float, so that digits are lost."""
    return int(2 ** (np.finfo(dtype).nmant + 1))


def missing_mask(texts: pyarrow.ChunkedArray | pyarrow.Array) -> NDArray[np.bool_]:
    """Which texts are null or what programs write for it, of shape :math:`[N]`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = pc.utf8_lower(pc.utf8_trim_whitespace(texts))
    return np.asarray(pc.is_in(plain, pa.array(MISSING, plain.type))) | null_mask(texts)


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
