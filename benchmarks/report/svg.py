"""Scales, ticks and marks of plots, as text; colours come from the page's style."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LINE_HEIGHT = 13.0  # of labels
LETTER = 6.3  # width of a letter of a label
TICK_WIDTH = 42.0  # from one to the next

Box = tuple[float, float, float, float]


def escape(text: object) -> str:
    """Text that may stand in an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def tag(name: str, *children: str, **attributes: object) -> str:
    """An element; ``class_`` is ``class``, other underscores are hyphens."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            key = key.rstrip('_').replace('_', '-')
            shown = f'{value:.5g}' if isinstance(value, float) else escape(value)
            parts.append(f'{key}="{shown}"')
    return f'<{" ".join(parts)}>{"".join(children)}</{name}>'


def text(x: float, y: float, content: object, **attributes: object) -> str:
    """A text whose ``y`` is the middle of its line."""
    return tag('text', escape(content), x=x, y=y, dy='.35em', **attributes)


@dataclass(frozen=True)
class Scale:
    """Values to pixels, linear or logarithmic.

    Args:
        low: The least value.
        high: The largest value.
        start: Pixel of the least value.
        end: Pixel of the largest value.
        log: Whether it is logarithmic.
        wanted: Values to have ticks at, as far as their labels find room.
        whole: Whether ticks are whole numbers only.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    wanted: tuple[float, ...] = ()
    whole: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log(v) for v in (low, high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """About five round values inside the scale."""
        inside: list[float] = []
        for value in self.wanted:
            if self.low <= value <= self.high and (
                not inside or abs(self(value) - self(inside[-1])) >= TICK_WIDTH
            ):
                inside.append(value)
        if len(inside) < 2 and self.log:
            inside = _log_ticks(self)
        if len(inside) < 2:
            inside = _linear_ticks(self.low, self.high)
        return [v for v in inside if v.is_integer()] if self.whole else inside


def _linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    raw = (high - low) / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * f for f in (1, 2, 2.5, 5, 10) if size * f >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 12) for i in range(count)]


def _log_ticks(scale: Scale) -> list[float]:
    powers = range(
        math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1
    )
    found: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        values = [f * 10.0**p for p in powers for f in factors]
        found = [v for v in values if scale.low <= v <= scale.high]
        if len(found) >= 3:
            break
    return found


def fit(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    zero: bool = False,
    pad: float = 0.06,
    wanted: tuple[float, ...] = (),
    whole: bool = False,
) -> Scale:
    """The scale that holds all values with a margin.

    Args:
        values: What is to be shown; positive ones for ``log``.
        start: Pixel of the lower end.
        end: Pixel of the upper end.
        log: Whether it is logarithmic.
        zero: Whether it begins at zero.
        pad: Margin, a share of the extent.
        wanted: Values to have ticks at.
        whole: Whether ticks are whole numbers only.
    """
    values = list(values)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log:
        spread = max(high / low, 1.5) ** pad
        return Scale(low / spread, high * spread, start, end, True, wanted, whole)
    low = 0.0 if zero else low
    margin = (high - low or abs(high) or 1.0) * pad
    low = low if zero else low - margin
    return Scale(low, high + margin, start, end, False, wanted, whole)


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as possible so that none is nearer than a gap.

    Neighbours that touch form a block around their mean place. Where there is not
    enough room between ``low`` and ``high`` the gap shrinks.
    """
    if not places:
        return []
    if len(places) > 1:
        gap = min(gap, (high - low) / (len(places) - 1))
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[tuple[float, int]] = []  # place of the first, size

    def inside(first: float, size: int) -> float:
        return min(max(first, low), high - (size - 1) * gap)

    for i in order:
        first, size = inside(places[i], 1), 1
        while blocks and blocks[-1][0] + blocks[-1][1] * gap > first + 1e-9:
            before, number = blocks.pop()
            middle = before * number + (first - number * gap) * size
            first, size = middle / (number + size), number + size
            first = inside(first, size)
        blocks.append((first, size))
    moved = [first + k * gap for first, size in blocks for k in range(size)]
    found = [0.0] * len(places)
    for i, place in zip(order, moved, strict=True):
        found[i] = place
    return found


def beside(
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    inside: Box,
) -> list[tuple[float, float, str]]:
    """A place and an anchor for the label of each point.

    Each label takes the first place around its point that hides no other point and no
    earlier label, or else the one that hides least.

    Args:
        points: Pixels of the points.
        labels: Their labels.
        inside: Left, top, right and lower end of where labels may be.
    """
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    found = []
    for (x, y), label in zip(points, labels, strict=True):
        size = LETTER * len(label)
        places = [
            (x + dx, y + dy, anchor)
            for reach in (0, 9)
            for dx, dy, anchor in (
                (9 + reach, 0.0, 'start'),
                (-9.0 - reach, 0.0, 'end'),
                (0.0, -12.0 - reach, 'middle'),
                (0.0, 12.0 + reach, 'middle'),
                (7.0, -10.0 - reach, 'start'),
                (7.0, 10.0 + reach, 'start'),
                (-7.0, -10.0 - reach, 'end'),
                (-7.0, 10.0 + reach, 'end'),
            )
        ]
        boxes = [_box(*place, size) for place in places]
        hidden = [
            sum(_overlap(box, other) for other in taken)
            + 1000 * (size * LINE_HEIGHT > _overlap(box, inside) + 1e-6)
            for box in boxes
        ]
        best = hidden.index(min(hidden))
        taken.append(boxes[best])
        found.append(places[best])
    return found


def _box(x: float, y: float, anchor: str, size: float) -> Box:
    left = x - {'start': 0.0, 'middle': size / 2, 'end': size}[anchor]
    return left, y - LINE_HEIGHT / 2, left + size, y + LINE_HEIGHT / 2


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)
