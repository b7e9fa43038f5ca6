"""The plots of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.report import numbers
from benchmarks.report.svg import LETTER, Scale, apart, beside, fit, tag, text

WIDTH = 460.0


@dataclass
class Mark:
    """A model in a plot, at one or several points."""

    label: str
    family: str
    x: list[float]
    y: list[float]
    title: str
    low: float | None = None
    high: float | None = None
    seeds: list[float] = field(default_factory=list)
    printed: float | None = None
    best: int | None = None  # index of the chosen point
    bounds: list[tuple[float, float] | None] = field(default_factory=list)


def _class(family: str) -> str:
    return f'series f-{family.replace(" ", "-")}'


def _plot(height: float, label: str, *children: str, width: float = WIDTH) -> str:
    box = f'0 0 {width:.0f} {height:.0f}'
    return tag('svg', *children, viewBox=box, role='img', aria_label=label)


def _axes(
    x: Scale,
    y: Scale,
    x_label: str,
    x_tick: Callable[[float], str] = numbers.tick,
) -> str:
    """Grid lines, ticks and the name of the horizontal axis."""
    parts = []
    for value in y.ticks:
        at = y(value)
        parts.append(tag('line', x1=x.start, x2=x.end, y1=at, y2=at, class_='grid'))
        parts.append(
            text(x.start - 7, at, numbers.tick(value), class_='tick', text_anchor='end')
        )
    for value in x.ticks:
        at = x(value)
        parts.append(
            tag('line', x1=at, x2=at, y1=y.start, y2=y.start + 4, class_='axis')
        )
        parts.append(
            text(at, y.start + 14, x_tick(value), class_='tick', text_anchor='middle')
        )
    parts.append(
        tag('line', x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_='axis')
    )
    middle = (x.start + x.end) / 2
    parts.append(
        text(middle, y.start + 32, x_label, class_='name', text_anchor='middle')
    )
    return ''.join(parts)


def dot_plot(
    marks: Sequence[Mark], metric: str, *, zero: bool = True, line: float | None = None
) -> str:
    """A row a model: its mean, interval and seeds, and what others have printed.

    Args:
        marks: The models.
        metric: What is shown of them.
        zero: Whether the axis begins at zero.
        line: Value at which all are crossed.
    """
    left = 14 + LETTER * max(len(mark.label) for mark in marks)
    top, step = 8.0, 23.0
    bottom = top + step * len(marks)
    shown = [
        v
        for m in marks
        for v in (*m.x, *m.seeds, m.low, m.high, m.printed, line)
        if v is not None
    ]
    x = fit(shown, left, WIDTH - 52, zero=zero, pad=0.02 if zero else 0.06)
    parts = []
    for value in x.ticks:
        at = x(value)
        parts.append(tag('line', x1=at, x2=at, y1=top, y2=bottom, class_='grid'))
        parts.append(
            text(
                at,
                bottom + 13,
                numbers.tick(value),
                class_='tick',
                text_anchor='middle',
            )
        )
    if line is not None:
        at = x(line)
        parts.append(tag('line', x1=at, x2=at, y1=top, y2=bottom, class_='base'))
    for i, mark in enumerate(marks):
        y = top + step * (i + 0.5)
        at = x(mark.x[0])
        own = [
            tag('title', mark.title),
            tag('rect', x=0, y=y - step / 2, width=WIDTH, height=step, class_='hit'),
            text(left - 12, y, mark.label, class_='label', text_anchor='end'),
        ]
        if mark.low is not None and mark.high is not None:
            ends = {'x1': x(mark.low), 'x2': x(mark.high)}
            own.append(tag('line', **ends, y1=y, y2=y, class_='interval'))
        for seed in mark.seeds:
            own.append(
                tag('line', x1=x(seed), x2=x(seed), y1=y - 6, y2=y + 6, class_='seed')
            )
        own.append(tag('circle', cx=at, cy=y, r=4.5, class_='dot'))
        if mark.printed is not None:
            place = f'translate({x(mark.printed):.2f} {y:.2f}) rotate(45)'
            own.append(
                tag(
                    'rect',
                    x=-4,
                    y=-4,
                    width=8,
                    height=8,
                    transform=place,
                    class_='print',
                )
            )
        own.append(
            text(
                WIDTH, y, numbers.decimal(mark.x[0]), class_='value', text_anchor='end'
            )
        )
        parts.append(tag('g', *own, class_=_class(mark.family)))
    middle = (x.start + x.end) / 2
    parts.append(text(middle, bottom + 31, metric, class_='name', text_anchor='middle'))
    return _plot(bottom + 42, f'{metric} of every model', *parts)


def curves(
    marks: Sequence[Mark],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    x_tick: Callable[[float], str] = numbers.tick,
    wanted: tuple[float, ...] = (),
    whole: bool = False,
) -> str:
    """A line a model and seed, labelled at its end; the chosen point is marked."""
    longest = max(len(mark.label) for mark in marks)
    height = max(250.0, 12.5 * len({mark.label for mark in marks}) + 60)
    every_x = [v for mark in marks for v in mark.x]
    end = WIDTH - 16 - LETTER * longest
    x = fit(every_x, 44, end, log=log, pad=0.03, wanted=wanted, whole=whole)
    y = fit((v for mark in marks for v in mark.y), height - 46, 22, zero=True)
    parts = [_axes(x, y, x_label, x_tick), text(0, 8, y_label, class_='name')]
    ends: dict[str, tuple[float, float]] = {}
    for mark in marks:  # a model with several seeds has its label at their mean end
        others = [m for m in marks if m.label == mark.label]
        at = sum(y(m.y[-1]) for m in others) / len(others)
        ends[mark.label] = max(x(m.x[-1]) for m in others), at
    names = dict(
        zip(
            ends,
            apart([at for _, at in ends.values()], 12.5, 16, height - 48),
            strict=True,
        )
    )
    for label, (end, at) in ends.items():
        own = [mark for mark in marks if mark.label == label]
        drawn = [tag('title', '\n'.join(dict.fromkeys(m.title for m in own)))]
        for i, mark in enumerate(own):
            pairs = list(zip(mark.x, mark.y, strict=True))
            points = ' '.join(f'{x(a):.1f},{y(b):.1f}' for a, b in pairs)
            curve = 'curve' if i == 0 else 'curve further'
            drawn.append(tag('polyline', points=points, class_=curve))
            a, b = pairs[mark.best or 0]
            dot = 'dot' if i == 0 else 'dot further'
            drawn.append(tag('circle', cx=x(a), cy=y(b), r=3.5, class_=dot))
        middle, place = x.end + 4, names[label]
        leader = (
            f'{end + 2:.1f},{at:.1f} {middle:.1f},{at:.1f} {middle + 7:.1f},{place:.1f}'
        )
        drawn.append(tag('polyline', points=leader, class_='leader'))
        drawn.append(text(middle + 10, place, label, class_='label'))
        parts.append(tag('g', *drawn, class_=_class(own[0].family)))
    return _plot(height, f'{y_label} against {x_label}', *parts)


def scatter(
    marks: Sequence[Mark],
    x_label: str,
    y_label: str,
    x_tick: Callable[[float], str] = numbers.tick,
    wanted: tuple[float, ...] = (),
) -> str:
    """A point a model; the line joins those that no other beats at lower cost."""
    height = 290.0
    values = (mark.x[0] for mark in marks)
    x = fit(values, 44, WIDTH - 30, log=True, pad=0.1, wanted=wanted)
    y = fit((mark.y[0] for mark in marks), height - 46, 26, zero=True, pad=0.08)
    parts = [_axes(x, y, x_label, x_tick), text(0, 8, y_label, class_='name')]
    steps: list[str] = []
    best = float('-inf')
    for mark in sorted(marks, key=lambda m: (m.x[0], -m.y[0])):
        if mark.y[0] > best:
            if steps:
                steps.append(f'{x(mark.x[0]):.1f},{y(best):.1f}')
            best = mark.y[0]
            steps.append(f'{x(mark.x[0]):.1f},{y(best):.1f}')
    steps.append(f'{x.end:.1f},{y(best):.1f}')
    parts.append(tag('polyline', points=' '.join(steps), class_='frontier'))
    points = [(x(mark.x[0]), y(mark.y[0])) for mark in marks]
    room = (x.start, 0.0, WIDTH, height - 46)
    places = beside(points, [mark.label for mark in marks], room)
    for mark, (cx, cy), (tx, ty, anchor) in zip(marks, points, places, strict=True):
        parts.append(
            tag(
                'g',
                tag('title', mark.title),
                tag('circle', cx=cx, cy=cy, r=5, class_='dot'),
                text(tx, ty, mark.label, class_='label', text_anchor=anchor),
                class_=_class(mark.family),
            )
        )
    return _plot(height, f'{y_label} against {x_label}', *parts)


def points(
    marks: Sequence[Mark], names: Sequence[str], x_label: str, y_label: str
) -> str:
    """Lines over named points, with intervals: one parameter of a grid."""
    height, width = 250.0, WIDTH
    right = 16 + LETTER * max(len(mark.label) for mark in marks)
    bounds = [v for mark in marks for pair in mark.bounds if pair for v in pair]
    values = [*bounds, *(v for mark in marks for v in mark.y)]
    x = Scale(-0.4, len(names) - 0.6, 52, width - right)
    y = fit(values, height - 46, 22, pad=0.1)
    parts = [text(0, 8, y_label, class_='name')]
    for value in y.ticks:
        at = y(value)
        parts.append(tag('line', x1=x.start, x2=x.end, y1=at, y2=at, class_='grid'))
        parts.append(
            text(45, at, numbers.tick(value), class_='tick', text_anchor='end')
        )
    for i, name in enumerate(names):
        parts.append(text(x(i), height - 32, name, class_='tick', text_anchor='middle'))
    middle = (x.start + x.end) / 2
    parts.append(
        text(middle, height - 14, x_label, class_='name', text_anchor='middle')
    )
    ends = apart([y(mark.y[-1]) for mark in marks], 14, 12, height - 50)
    for mark, place in zip(marks, ends, strict=True):
        pairs = [(x(a), y(b)) for a, b in zip(mark.x, mark.y, strict=True)]
        line = ' '.join(f'{a:.1f},{b:.1f}' for a, b in pairs)
        own = [tag('title', mark.title), tag('polyline', points=line, class_='curve')]
        for (a, _), bound in zip(pairs, mark.bounds, strict=False):
            if bound is not None:
                y1, y2 = y(bound[0]), y(bound[1])
                own.append(tag('line', x1=a, x2=a, y1=y1, y2=y2, class_='interval'))
        for i, (a, b) in enumerate(pairs):
            chosen = 'dot chosen' if i == mark.best else 'dot'
            own.append(tag('circle', cx=a, cy=b, r=4, class_=chosen))
        own.append(text(x.end + 6, place, mark.label, class_='label'))
        parts.append(tag('g', *own, class_=_class(mark.family)))
    return _plot(height, f'{y_label} against {x_label}', *parts)


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    names: tuple[str, str],
    metric: str,
) -> str:
    """Cells shaded from the lowest to the highest value: two parameters of a grid."""
    known = [v for row in values for v in row if v is not None]
    low, high = min(known), max(known)
    left = 52 + LETTER * max(len(row) for row in rows)
    step = min(72.0, (WIDTH - left) / len(columns))
    top, tall = 24.0, 32.0
    parts = [text(0, 8, metric, class_='name')]
    for i, row in enumerate(values):
        at = top + tall * (len(values) - 1 - i)  # the first row lies at the bottom
        parts.append(
            text(left - 8, at + tall / 2, rows[i], class_='tick', text_anchor='end')
        )
        for j, value in enumerate(row):
            if value is None:
                continue
            share = (value - low) / ((high - low) or 1)
            x = left + step * j
            parts.append(
                tag(
                    'rect',
                    x=x + 1,
                    y=at + 1,
                    width=step - 2,
                    height=tall - 2,
                    rx=3,
                    class_='cell',
                    fill_opacity=0.05 + 0.6 * share,
                )
            )
            parts.append(
                text(
                    x + step / 2,
                    at + tall / 2,
                    f'{value:.4f}'.removeprefix('0'),
                    class_='value best' if value == high else 'value',
                    text_anchor='middle',
                )
            )
    bottom = top + tall * len(values)
    for j, column in enumerate(columns):
        at = left + step * (j + 0.5)
        parts.append(text(at, bottom + 12, column, class_='tick', text_anchor='middle'))
    middle = left + step * len(columns) / 2
    parts.append(
        text(middle, bottom + 30, names[1], class_='name', text_anchor='middle')
    )
    side = f'rotate(-90 12 {(top + bottom) / 2:.1f})'
    parts.append(
        text(
            12,
            (top + bottom) / 2,
            names[0],
            class_='name',
            text_anchor='middle',
            transform=side,
        )
    )
    return _plot(bottom + 42, f'{metric} over {names[0]} and {names[1]}', *parts)
