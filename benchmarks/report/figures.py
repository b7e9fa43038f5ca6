"""Which plots a part of a report has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.report import charts, numbers
from benchmarks.report.analysis import Analysis, Row
from benchmarks.report.cells import METRICS, Model
from benchmarks.report.charts import Mark
from benchmarks.report.ladder import Ladder
from benchmarks.report.tables import apart, left_out, of_group, ordered, remarks

N10 = METRICS.index('N@10')


class Figure(NamedTuple):
    """Plots beside each other."""

    title: str
    plots: list[str]
    caption: str


def _told(model: Model, *lines: str) -> str:
    return '\n'.join([model.label, *lines])


def _row_mark(row: Row, metric: str) -> Mark:
    i = METRICS.index(metric)
    lines = [f'{metric} {numbers.decimal(row.mean[i])}']
    mark = Mark(row.model.label, row.model.name.family, [row.mean[i]], [], '')
    if row.low is not None and row.high is not None:
        mark.low, mark.high = row.low[i], row.high[i]
        lines[0] += f' [{numbers.decimal(mark.low)}, {numbers.decimal(mark.high)}]'
    if row.printed is not None and metric in row.printed.metrics:
        mark.printed = row.printed.metrics[metric]
        lines.append(
            f'printed {numbers.decimal(mark.printed)} as {row.printed.model} '
            f'({row.printed.protocol})'
        )
    if row.deviation is not None:
        lines.append(f'{row.seeds} seeds, ± {numbers.decimal(row.deviation[i])}')
    mark.title = _told(row.model, *lines)
    return mark


def accuracy(analysis: Analysis) -> list[Figure]:
    """Metrics with intervals under the headline protocol."""
    models = analysis.section.models
    table = analysis.tables.get(analysis.headline, [])
    groups = apart([row for row in ordered(table) if row.model in models])
    return [_accuracy(analysis, rows) for rows in groups if len(rows) > 1]


def _accuracy(analysis: Analysis, rows: Sequence[Row]) -> Figure:
    plots = []
    for metric in ('N@10', 'R@10'):
        marks = []
        for row in rows:
            mark = _row_mark(row, metric)
            each = row.model.metrics(analysis.headline)
            if each is not None and len(each) > 1:
                mark.seeds = [float(v) for v in each[:, METRICS.index(metric)]]
            marks.append(mark)
        plots.append(charts.dot_plot(marks, metric))
    caption = (
        f'Test, {analysis.headline}. Dot: mean over seeds; line: interval over users; '
        'strokes: seeds; open diamond: printed by others, under their protocol.'
    )
    caption += remarks(row.model for row in rows)
    return Figure(of_group('Accuracy', rows[0].model), plots, caption)


def learning(analysis: Analysis) -> list[Figure]:
    """Validation N@10 against epochs and seconds."""
    by_epoch: list[Mark] = []
    by_second: list[Mark] = []
    for model in analysis.section.shown:
        for result in model.results:
            points = result.curve
            if not points:
                continue
            epochs, seconds, values = (list(c) for c in zip(*points, strict=True))
            best = max(range(len(values)), key=lambda i: values[i])
            title = _told(
                model,
                f'best {values[best]:.4f} at epoch {epochs[best]}, '
                f'{numbers.duration(seconds[best])}',
            )
            for marks, x in ((by_epoch, epochs), (by_second, seconds)):
                marks.append(
                    Mark(model.label, model.name.family, x, values, title, best=best)
                )
    if not by_epoch:
        return []
    y = 'validation N@10'
    return [
        Figure(
            'Learning curves',
            [
                charts.curves(by_epoch, 'epoch', y, whole=True),
                charts.curves(
                    by_second,
                    'training time',
                    y,
                    log=True,
                    x_tick=numbers.duration,
                    wanted=numbers.DURATIONS,
                ),
            ],
            'A line a seed, the first one stronger; the dot is the epoch whose weights '
            'were kept. Time is that of training epochs, on a machine that may have '
            'done other work as well.',
        )
    ]


def cost(analysis: Analysis) -> list[Figure]:
    """Test N@10 against what it took."""
    rows = {
        row.model.key: row
        for row in analysis.tables.get(analysis.headline, [])
        if not (row.model.saw_validation or row.model.outdated)
    }
    plots = []
    for label, attribute, write, wanted in (
        ('training time', 'training_seconds', numbers.duration, numbers.DURATIONS),
        ('ranking 1,000 users', 'ranking_seconds', numbers.duration, numbers.DURATIONS),
        ('trained parameters', 'trained_parameters', numbers.size, ()),
        ('peak memory', 'peak_memory', numbers.memory, ()),
    ):
        marks = []
        for model in analysis.section.models:
            value = model.typical(attribute)
            if model.key in rows and value:
                y = float(rows[model.key].mean[N10])
                title = _told(model, f'N@10 {y:.4f}', f'{label} {write(value)}')
                marks.append(Mark(model.label, model.name.family, [value], [y], title))
        if len(marks) > 1:
            plots.append(charts.scatter(marks, label, 'test N@10', write, wanted))
    caption = (
        f'{analysis.headline}; N@10 is the mean over seeds, the cost the median. The '
        'line joins the models that no cheaper one beats. What is only counted has no '
        'parameters; the training of a language model is without that of the tables '
        'that it reads, that of an ensemble with the validation that chose its weights.'
    )
    caption += left_out(analysis.section.models)
    return [Figure('Accuracy against cost', plots, caption)] if plots else []


def ladder(rungs: Ladder | None) -> list[Figure]:
    """Validation of what was not tested, in the order of the table."""
    if rungs is None or len(rungs.compared) < 2:
        return []
    caption = 'Validation at the best epoch; the axes do not begin at zero.'
    if rungs.base is not None:
        caption += f' The line is {rungs.base.name.label}, the base.'
    plots = [_rungs(rungs, metric) for metric in ('N@10', 'R@10')]
    return [Figure('Ladder', plots, caption)]


def _rungs(rungs: Ladder, metric: str) -> str:
    marks, base = [], None
    for model in rungs.compared:
        values = model.validations(metric)
        mean = model.mean(values)
        if mean is None:
            continue
        base = mean if model is rungs.base else base
        seeds = values if len(values) > 1 else []
        title = _told(model, f'{metric} {mean:.4f}')
        marks.append(
            Mark(model.label, model.name.family, [mean], [], title, seeds=seeds)
        )
    return charts.dot_plot(marks, f'validation {metric}', zero=False, line=base)


def grids(analysis: Analysis) -> list[Figure]:
    """Validation and test N@10 over the points of every grid that was tested."""
    rows = {row.model.key: row for row in analysis.tables.get(analysis.headline, [])}
    lines: list[str] = []
    maps: dict[str, list[str]] = {}
    for name, models in analysis.section.grids.items():
        models = [model for model in models if model.key in rows]
        keys = list(models[0].results[0].get('grid')) if models else []
        if len(keys) == 1:
            lines.append(_one_key(models, rows, keys[0]))
        elif len(keys) == 2:
            maps[f'{name}: {" and ".join(keys)}'] = _two_keys(models, rows, keys)
    reduced = ' (reduced grid)' if 'reduced' in analysis.section.table else ''
    caption = f'N@10, means over seeds; test is {analysis.headline}. '
    marked = caption + 'Validation chooses: its best point is ringed.'
    found = [Figure(f'One parameter at a time{reduced}', lines, marked)]
    shaded = caption + 'Shaded from the lowest to the highest value; bold: the highest.'
    found += [Figure(title + reduced, plots, shaded) for title, plots in maps.items()]
    return [figure for figure in found if figure.plots]


def _values(models: Sequence[Model], key: str) -> list[object]:
    found = {model.results[0].content['grid'][key] for model in models}
    numeric = [v for v in found if isinstance(v, int | float)]
    return [*sorted(numeric), *sorted(found.difference(numeric), key=str)]


def _one_key(models: Sequence[Model], rows: dict[str, Row], key: str) -> str:
    values = _values(models, key)
    names = [numbers.setting(value) for value in values]
    place = {
        model.key: values.index(model.results[0].content['grid'][key])
        for model in models
    }
    models = sorted(models, key=lambda model: place[model.key])
    at = [float(place[model.key]) for model in models]
    chosen = max(range(len(models)), key=lambda i: models[i].validation or 0.0)
    marks = []
    for label, family, y in (
        ('validation', 'other', [model.validation or 0.0 for model in models]),
        ('test', 'hypergraph', [float(rows[m.key].mean[N10]) for m in models]),
    ):
        pairs = [f'{names[int(a)]}: {b:.4f}' for a, b in zip(at, y, strict=True)]
        mark = Mark(label, family, at, y, '\n'.join([label, *pairs]), best=chosen)
        if label == 'test':
            mark.bounds = [_bounds(rows[model.key]) for model in models]
        marks.append(mark)
    return charts.points(marks, names, key, 'N@10')


def _bounds(row: Row) -> tuple[float, float] | None:
    if row.low is None or row.high is None:
        return None
    return float(row.low[N10]), float(row.high[N10])


def _two_keys(
    models: Sequence[Model], rows: dict[str, Row], keys: list[str]
) -> list[str]:
    down, across = (_values(models, key) for key in keys)
    plots = []
    for metric in ('validation N@10', 'test N@10'):
        table: list[list[float | None]] = [[None] * len(across) for _ in down]
        for model in models:
            point = model.results[0].content['grid']
            i, j = down.index(point[keys[0]]), across.index(point[keys[1]])
            test = float(rows[model.key].mean[N10])
            table[i][j] = model.validation if metric.startswith('v') else test
        plots.append(
            charts.heat_map(
                table,
                [numbers.setting(value) for value in down],
                [numbers.setting(value) for value in across],
                (keys[0], keys[1]),
                metric,
            )
        )
    return plots


def results(analysis: Analysis) -> list[Figure]:
    """Plots of what came out."""
    return [*accuracy(analysis), *grids(analysis)]


def effort(analysis: Analysis) -> list[Figure]:
    """Plots of what it took."""
    return [*learning(analysis), *cost(analysis)]
