"""Models by data sets under the headline protocol."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.report import numbers
from benchmarks.report.analysis import Analysis, Row
from benchmarks.report.cells import METRICS
from benchmarks.report.names import title_of
from benchmarks.report.tables import Cell, Table, named, refitted
from hellm_pyg.evaluation import HEADLINE

SHOWN = ('R@10', 'N@10')
N10 = METRICS.index('N@10')


def overview(analyses: Sequence[Analysis]) -> list[Table]:
    """A table of experiments on several data sets: its models by these."""
    found: dict[str, list[Analysis]] = {}
    for analysis in analyses:
        if str(HEADLINE) in analysis.tables:
            found.setdefault(analysis.section.table, []).append(analysis)
    return [_overview(t, parts) for t, parts in found.items() if len(parts) > 1]


def _overview(table: str, parts: Sequence[Analysis]) -> Table:
    rows: dict[str, dict[int, Row]] = {}
    for i, analysis in enumerate(parts):
        for row in analysis.tables[str(HEADLINE)]:
            if row.model in analysis.section.models:
                rows.setdefault(row.model.key, {})[i] = row
    order = sorted(rows, key=lambda key: _rank(rows[key]), reverse=True)
    best = {
        (i, metric): max(_value(own[i], metric) for own in rows.values() if i in own)
        for i in range(len(parts))
        for metric in SHOWN
    }
    body = []
    for key in order:
        own = rows[key]
        seeds = [str(own[i].seeds) if i in own else '-' for i in range(len(parts))]
        first = next(iter(own.values())).model
        same = len(set(seeds)) == 1
        cells = [named(first), Cell(seeds[0] if same else ', '.join(seeds))]
        for i, metric in itertools.product(range(len(parts)), SHOWN):
            cells.append(_cell(own.get(i), metric, best[i, metric]))
        body.append(cells)
    names = [analysis.section.dataset for analysis in parts]
    columns = ['model', 'seeds']
    columns += [f'{name.capitalize()}\n{metric}' for name in names for metric in SHOWN]
    caption = (
        f'Test, {HEADLINE}. Mean over seeds, ± their standard deviation where there '
        'are several; seeds by data set where their numbers differ. Below: what others '
        'have printed, † under another protocol.'
    )
    caption += refitted(next(iter(own.values())).model for own in rows.values())
    return Table(f'Overview of {title_of(table)}', columns, body, caption)


def _value(row: Row, metric: str) -> float:
    return float(row.mean[METRICS.index(metric)])


def _rank(own: dict[int, Row]) -> tuple[int, float]:
    values = [row.mean[N10] for row in own.values()]
    return len(values), float(sum(values))


def _cell(row: Row | None, metric: str, best: float) -> Cell:
    if row is None:
        return Cell('-')
    value, spread, printed = _value(row, metric), '', ''
    if row.deviation is not None:
        spread = f'± {numbers.decimal(row.deviation[METRICS.index(metric)])}'
    if row.printed is not None and metric in row.printed.metrics:
        other = row.printed.protocol != str(HEADLINE)
        number = numbers.decimal(row.printed.metrics[metric])
        printed = f'(printed {number}{"†" if other else ""})'
    return Cell(numbers.decimal(value), spread, printed, value == best)
