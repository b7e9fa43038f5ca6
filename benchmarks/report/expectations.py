"""What others have printed, beside what came out under the same protocol."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.report import numbers
from benchmarks.report.analysis import Analysis, Row
from benchmarks.report.cells import METRICS
from benchmarks.report.names import Printed, printed_all, tables
from benchmarks.report.tables import Cell, Table, between, named, remarks


class Expectation(NamedTuple):
    """A printed row and the model that stands for it."""

    printed: Printed
    row: Row

    def measured(self, metric: str) -> float:
        """Mean over seeds."""
        return float(self.row.mean[METRICS.index(metric)])


def expectations(analysis: Analysis) -> list[Table]:
    """A table a source, of the models that it has and their protocol was measured."""
    found: dict[str, list[Expectation]] = {}
    if not analysis.section.has_printed_data:
        return []
    for model in analysis.section.models:
        for printed in printed_all(model.key, analysis.section.dataset):
            for row in analysis.tables.get(printed.protocol, []):
                if row.model is model:
                    own = Expectation(printed, row)
                    found.setdefault(printed.source, []).append(own)
    shown = {table['source']: table['metrics'][:2] for table in tables()}
    return [
        _table(source, found[source], metrics)
        for source, metrics in shown.items()
        if source in found
    ]


def _table(source: str, rows: list[Expectation], metrics: Sequence[str]) -> Table:
    last = metrics[-1]
    rows = sorted(rows, key=lambda one: (-one.printed.metrics[last], one.row.model.key))
    body = []
    for one in rows:
        cells = [
            named(one.row.model),
            Cell(one.printed.model),
            Cell(one.printed.protocol),
        ]
        for metric in metrics:
            printed, measured = one.printed.metrics[metric], one.measured(metric)
            cells += [
                Cell(numbers.decimal(printed), faint=True),
                Cell(numbers.decimal(measured), interval=_interval(one.row, metric)),
                Cell(numbers.percent(measured / printed - 1)),
            ]
        body.append(cells)
    columns = ['model', 'printed as', 'protocol']
    for metric in metrics:
        columns += [f'printed\n{metric}', f'measured\n{metric}', 'difference']
    caption = (
        'Each row under the protocol that it was printed under; intervals are those of '
        f'the test tables. {_order(rows, last)}'
    )
    caption = caption.strip() + remarks(one.row.model for one in rows)
    return Table(source, columns, body, caption, words={1, 2})


def _interval(row: Row, metric: str) -> str:
    i = METRICS.index(metric)
    if row.low is None or row.high is None:
        return ''
    return between(row.low[i], row.high[i], numbers.decimal)


def _order(rows: Sequence[Expectation], metric: str) -> str:
    """How many pairs of printed rows come out as printed.

    Of several models that stand for one row, validation chooses; it cannot choose
    those that were trained on its items. What is outdated is not asked.
    """
    chosen: dict[str, Expectation] = {}
    plain = [
        one
        for one in rows
        if not (one.row.model.saw_validation or one.row.model.outdated)
    ]
    for one in sorted(plain, key=lambda one: one.row.model.validation or 0.0):
        chosen[one.printed.model] = one
    pairs = [
        (a, b)
        for a, b in itertools.combinations(chosen.values(), 2)
        if a.printed.metrics[metric] != b.printed.metrics[metric]
    ]
    if not pairs:
        return ''
    kept = sum(
        (a.printed.metrics[metric] > b.printed.metrics[metric])
        == (a.measured(metric) > b.measured(metric))
        for a, b in pairs
    )
    return (
        f'{kept} of {len(pairs)} {"pair" if len(pairs) == 1 else "pairs"} of printed '
        f'rows {"is" if len(pairs) == 1 else "are"} in the printed order by {metric}, '
        'whatever their protocols; the best on validation stands for its row.'
    )
