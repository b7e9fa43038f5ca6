"""Models by data sets under the headline protocol."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.report import numbers
from benchmarks.report.analysis import Analysis, Row
from benchmarks.report.cells import METRICS, OUTDATED
from benchmarks.report.names import title_of
from benchmarks.report.tables import Cell, Table, of_group, remarks
from hellm_pyg.evaluation import HEADLINE

SHOWN = ('R@10', 'N@10')
N10 = METRICS.index('N@10')


def overview(analyses: Sequence[Analysis]) -> list[Table]:
    """A table of experiments on several data sets: its models by these.

    What was trained on the validation items, too, has a table of its own.
    """
    found: dict[str, list[Analysis]] = {}
    for analysis in analyses:
        if str(HEADLINE) in analysis.tables:
            found.setdefault(analysis.section.table, []).append(analysis)
    return [
        _overview(table, parts, rows)
        for table, parts in found.items()
        if len(parts) > 1
        for rows in (_rows(parts, saw) for saw in (False, True))
        if rows
    ]


def _rows(parts: Sequence[Analysis], saw: bool) -> dict[str, dict[int, Row]]:
    """By model and part, the rows of those that saw the validation items or did not."""
    rows: dict[str, dict[int, Row]] = {}
    for i, analysis in enumerate(parts):
        for row in analysis.tables[str(HEADLINE)]:
            if row.model in analysis.section.models and row.model.saw_validation is saw:
                rows.setdefault(row.model.key, {})[i] = row
    return rows


def _overview(
    table: str, parts: Sequence[Analysis], rows: dict[str, dict[int, Row]]
) -> Table:
    order = sorted(rows, key=lambda key: _rank(rows[key]), reverse=True)
    best = {
        (i, metric): max(
            (
                _value(own[i], metric)
                for own in rows.values()
                if i in own and not own[i].model.outdated
            ),
            default=0.0,
        )
        for i in range(len(parts))
        for metric in SHOWN
    }
    body = []
    for key in order:
        own = rows[key]
        seeds = [str(own[i].seeds) if i in own else '-' for i in range(len(parts))]
        name = next(iter(own.values())).model.name
        same = len(set(seeds)) == 1
        cells = [
            Cell(name.label, family=name.family),
            Cell(seeds[0] if same else ', '.join(seeds)),
        ]
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
    models = [row.model for own in rows.values() for row in own.values()]
    title = of_group(f'Overview of {title_of(table)}', models[0])
    return Table(title, columns, body, caption + remarks(models))


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
    mark = f' {OUTDATED}' * row.model.outdated
    return Cell(numbers.decimal(value) + mark, spread, printed, value == best)
