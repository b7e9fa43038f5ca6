"""How numbers are written."""

from __future__ import annotations

from collections.abc import Sequence

# Round durations, in seconds.
DURATIONS = tuple(
    float(unit * count)
    for unit, counts in (
        (0.01, (1, 2, 5, 10, 20, 50)),
        (1, (1, 2, 5, 10, 20, 30)),
        (60, (1, 2, 5, 10, 20, 30)),
        (3600, (1, 2, 5, 10, 20, 50, 100)),
    )
    for count in counts
)


def decimal(value: float | None) -> str:
    """A metric with four decimals."""
    return '-' if value is None or value != value else f'{value:.4f}'


def signed(value: float) -> str:
    """A difference with its sign, which is a minus and no hyphen."""
    return f'{value:+.4f}'.replace('-', '\N{MINUS SIGN}')


def p_value(value: float, bound: bool = False) -> str:
    """A p-value; a bound is the least that the resamples can tell."""
    return ('≤ ' if bound else '') + f'{value:.{4 if value < 0.01 else 3}f}'


def percent(value: float | None) -> str:
    """A share as a difference with its sign."""
    if value is None:
        return '-'
    return f'{value:+.1%}'.replace('-', '\N{MINUS SIGN}').replace('%', ' %')


def setting(value: object) -> str:
    """A value of a configuration."""
    if value is None or isinstance(value, bool):
        return {None: 'none', True: 'yes', False: 'no'}[value]
    if isinstance(value, list):
        return f'[{", ".join(setting(one) for one in value)}]'
    return f'{value:g}' if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return '-'
    if seconds < 59.5:
        return f'{seconds:.2g} s'
    if seconds < 3599:
        return f'{seconds / 60:.2g} min'
    return f'{seconds / 3600:.3g} h'


def size(count: float | None, units: Sequence[str] = ('', 'k', 'M', 'G')) -> str:
    """A count with three digits and a prefix."""
    if count is None:
        return '-'
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f'{count:.3g}{units[power]}'


def memory(count: float | None) -> str:
    """Bytes."""
    return '-' if count is None else size(count, (' B', ' kB', ' MB', ' GB'))


def tick(value: float) -> str:
    """A value on an axis."""
    if value and not 1e-4 <= abs(value) < 1e4:
        return size(value) if value >= 1 else f'{value:.0e}'
    return f'{value:g}'
