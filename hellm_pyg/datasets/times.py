"""Arrow columns to times: numbers of any unit, dates, ISO 8601."""

from __future__ import annotations

import re
import time as clock
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hellm_pyg.datasets.columns import (
    INTEGER,
    NUMBER,
    ROUNDED,
    decoded,
    exact_below,
    is_text,
    matches,
    missing_mask,
    null_mask,
)
from hellm_pyg.datasets.rows import RowCheck

if TYPE_CHECKING:
    import pyarrow

TimeUnit = Literal['s', 'ms', 'us', 'ns', 'number']

NAMES = {
    's': 'seconds',
    'ms': 'milliseconds',
    'us': 'microseconds',
    'ns': 'nanoseconds',
}
PER_SECOND = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}
# Seconds of the years 1990 to 2100: no two units share a number in this range.
FIRST, LAST = 631_152_000, 4_102_444_800
DAY = 86_400


class Times(NamedTuple):
    """Times that can be sorted.

    Args:
        value: int64 or float64, or datetime64 of a unit below the second, :math:`[N]`.
        read_as: ``'s'``, ``'ms'``, ``'us'``, ``'ns'`` (since 1970), ``'dates'``, or
            ``'number'``, where nothing is known of the unit.
    """

    value: NDArray[np.generic]
    read_as: str


def read_times(
    column: pyarrow.ChunkedArray,
    name: str,
    rows: RowCheck,
    unit: TimeUnit | None = None,
) -> Times:
    """The times of a column in their full resolution.

    Numbers without a given unit are seconds, milliseconds, microseconds or
    nanoseconds since 1970 if at least half of them then lie in the years 1990 to
    2100, which holds for one unit at most, and dates if all of them are written as
    20240131; otherwise they stay plain numbers. Text holds numbers or ISO 8601;
    without a zone, UTC is meant.

    Args:
        column: Integers, floats, dates, timestamps or text, of length :math:`N`.
        name: Column, for messages.
        rows: Is told of missing and unreadable times, and, unless they are plain
            numbers, of times in 1970's first second or before, and of those more
            than a day in the future.
        unit: Unit of numbers; ``'number'`` takes them as they are.

    Raises:
        ValueError: If a bad row is refused, units are mixed, or ``unit`` is not the
            one that the times are in.
    """
    import pyarrow as pa

    if unit not in (None, 'number', *PER_SECOND):
        raise ValueError(
            f"'time_unit' needs to be 's', 'ms', 'us', 'ns' or 'number' (got {unit!r})"
        )
    column = decoded(column)
    kind = column.type
    null = missing_mask(column) if is_text(kind) else null_mask(column)
    told = _Told(rows, name)
    told(null, 'is missing a value in row {row}')
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamps = _microseconds(column.fill_null(_zero(kind)), getattr(kind, 'tz', None))
        return _calendar(Times(stamps, 'dates'), told)
    if is_text(kind):
        rounded = matches(column, ROUNDED)
        told(rounded, 'has a time that a spreadsheet has rounded in {where}', column)
        null |= rounded
        number = matches(column, NUMBER) & ~null
        if 2 * number.sum() < (~null).sum():
            return _calendar(Times(_iso(column, null, number, told), 'dates'), told)
        told(~number & ~null, 'needs a number, as other rows have, in {where}', column)
        column = _numeric(column, number)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(
            f"'{rows.source}': column '{name}' needs numbers, dates or text as times "
            f'(got {kind}); write them as ISO 8601 text'
        )
    values = _whole(column, told)
    if unit is None and (days := _days(values, rows.kept)) is not None:
        return _calendar(Times(days, 'dates'), told)
    read_as = unit or _guessed_unit(values[rows.kept])
    if read_as == 'number':
        return Times(values, read_as)
    _refuse_mixture(values, read_as, told)
    return _calendar(Times(_in_unit(values, read_as), read_as), told)


def whole_times(times: NDArray[np.generic]) -> NDArray[np.int64]:
    """Numbers are rounded down, dates become seconds since 1970."""
    if times.dtype.kind == 'M':
        times = times.astype('datetime64[s]')
    elif times.dtype.kind == 'f':
        times = np.floor(times.astype(np.float64))
    return times.astype(np.int64)


def read_moment(
    value: str | int | date | None, unit: TimeUnit | None = None
) -> str | int | None:
    """A moment among times since 1970: seconds, or ISO 8601 text.

    Args:
        value: ISO 8601 text, a date, or a number, also as text. Without a unit, that
            of a number is told from its size as in :func:`read_times`; 20240131 is a
            date.
        unit: Unit of a number.
    """
    if value is None:
        return None
    text = value.isoformat() if isinstance(value, date) else str(value).strip()
    if not re.fullmatch(r'-?[0-9]+', text):
        return text
    number = int(text)
    if unit is None and _days(np.array([number]), np.array([True])) is not None:
        return text
    return number // PER_SECOND.get(unit or _unit_of(number) or 's', 1)


class _Told(NamedTuple):
    """Words the faults of the times of one column."""

    rows: RowCheck
    name: str

    def __call__(
        self,
        bad: NDArray[np.bool_],
        fault: str,
        values: Sequence[Any] | pyarrow.ChunkedArray = (),
        reason: str = 'unreadable time',
    ) -> None:
        def message(row: int) -> str:
            got = ''
            if len(values):
                value = values[row]
                value = value.as_py() if hasattr(value, 'as_py') else value
                got = (
                    f' (got {value if isinstance(value, np.generic) else repr(value)})'
                )
            where = f'row {row + 1}{got}'
            return f"column '{self.name}' {fault.format(row=row + 1, where=where)}"

        self.rows(bad, reason, message)


def _zero(kind: pyarrow.DataType) -> pyarrow.Scalar:
    import pyarrow as pa

    width = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    return pa.scalar(0, width).cast(kind)


def _microseconds(
    column: pyarrow.ChunkedArray, zone: str | None
) -> NDArray[np.datetime64]:
    import pyarrow as pa

    stamps = column.cast(pa.timestamp('us', tz=zone), safe=False)
    return stamps.cast(pa.int64()).to_numpy().view('datetime64[us]')


def _iso(
    column: pyarrow.ChunkedArray,
    null: NDArray[np.bool_],
    number: NDArray[np.bool_],
    told: _Told,
) -> NDArray[np.datetime64]:
    import pyarrow as pa

    for zone in () if null.any() else (None, 'UTC'):
        try:
            return _microseconds(column.cast(pa.timestamp('us', tz=zone)), zone)
        except pa.ArrowInvalid:
            continue
    # Several formats, or something that is none: each distinct text by itself.
    encoded = column.fill_null('').dictionary_encode().combine_chunks()
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    stamp = np.zeros(len(encoded.dictionary), dtype=np.int64)
    bad = np.zeros(stamp.size, dtype=bool)
    for index, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            bad[index] = True
            continue
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        stamp[index] = (when - epoch) // timedelta(microseconds=1)
    code = encoded.indices.to_numpy()
    wanted = 'needs a number or an ISO 8601 time in {where}'
    if number.any():
        wanted = 'needs an ISO 8601 time, as other rows have, in {where}'
    told((bad[code] | number) & ~null, wanted, column)
    return stamp[code].view('datetime64[us]')


def _numeric(
    column: pyarrow.ChunkedArray, number: NDArray[np.bool_]
) -> pyarrow.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not number.all():
        column = pc.if_else(pa.array(number), column, '0')
    integers = pc.all(pc.match_substring_regex(column, INTEGER)).as_py()
    return column.cast(pa.int64() if integers else pa.float64())


def _whole(column: pyarrow.ChunkedArray, told: _Told) -> NDArray[Any]:
    """Numbers that fit into int64, as int64 or float64; 0 in place of others."""
    values = column.fill_null(0).to_numpy()
    if values.dtype.kind == 'f':
        bad = ~np.isfinite(values)
        told(bad, 'needs a finite number in {where}', values)
        values = np.where(bad, 0.0, values)
    # Beyond 64 bits a cast would wrap around, and reorder what is sorted by it.
    bad = (values >= 2.0**63) | (values < -(2.0**63))
    told(bad, 'needs times that fit into 64 bits in {where}', values)
    if bad.any():
        values = np.where(bad, 0, values)
    if values.dtype in (np.float16, np.float32):
        lost = np.abs(values) >= exact_below(values.dtype)
        told(
            lost,
            f'has lost digits as {values.dtype}, write int64, in {{where}}',
            values,
        )
    return values if values.dtype.kind == 'f' else values.astype(np.int64)


def _unit_of(value: float) -> str | None:
    """The unit in which a number lies in the years 1990 to 2100."""
    for unit, size in PER_SECOND.items():
        if FIRST * size <= value <= LAST * size:
            return unit
    return None


def _days(
    values: NDArray[Any], kept: NDArray[np.bool_]
) -> NDArray[np.datetime64] | None:
    """Numbers written as year, month and day, 20240131, if all of them are."""
    day = np.where(kept, values, 20000101)
    if not ((day >= 19900101) & (day <= 21001231) & (day == np.floor(day))).all():
        return None
    year, month, day = (day // p % q for p, q in ((10000, 10000), (100, 100), (1, 100)))
    months = ((year - 1970) * 12 + month - 1).astype('datetime64[M]')
    days = months.astype('datetime64[D]') + (day - 1).astype(int)
    if not (
        (month >= 1) & (month <= 12) & (days.astype('datetime64[M]') == months)
    ).all():
        return None
    return days.astype('datetime64[us]')


def _guessed_unit(values: NDArray[Any]) -> str:
    if values.size == 0:
        return 'number'
    middle = values.size // 2
    return _unit_of(float(np.partition(values, middle)[middle])) or 'number'


def _refuse_mixture(values: NDArray[Any], unit: str, told: _Told) -> None:
    fits = {
        one: (values >= FIRST * size) & (values <= LAST * size)
        for one, size in PER_SECOND.items()
    }
    for other, mixed in fits.items():
        if other != unit and mixed.any():
            row = int(mixed.argmax())
            if not fits[unit].any():  # it was given
                raise ValueError(
                    f"'time_unit' needs to be the unit of column '{told.name}' of "
                    f"'{told.rows.source}' (got '{unit}', and no time is "
                    f'{NAMES[unit]} since 1970, row {row + 1} is {NAMES[other]}: '
                    f"{values[row]}); give time_unit='{other}', or leave it out"
                )
            raise ValueError(
                f"'{told.rows.source}': column '{told.name}' mixes units: most rows "
                f'are {NAMES[unit]} since 1970, row {row + 1} is {NAMES[other]} (got '
                f'{values[row]}); write all of them in one unit'
            )


def _in_unit(values: NDArray[Any], unit: str) -> NDArray[np.generic]:
    if unit == 's':
        return values
    if values.dtype.kind == 'f':
        return np.round(values / PER_SECOND[unit], 6)
    return values.view(f'datetime64[{unit}]')


def _calendar(times: Times, told: _Told) -> Times:
    """Tells of times that no interaction can have."""
    seconds = whole_times(times.value)
    shown = times.value
    early = (seconds <= 0) & told.rows.kept
    told(early, 'needs times after 1970-01-01 in {where}', shown, 'time not after 1970')
    now = int(clock.time())
    late = (seconds > now + DAY) & told.rows.kept
    told(late, 'has a time in the future in {where}', shown, 'time in the future')
    return times
