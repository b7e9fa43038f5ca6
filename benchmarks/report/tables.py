"""The tables of a report, whatever they are rendered as."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.report import numbers
from benchmarks.report.analysis import (
    TESTED,
    Analysis,
    Row,
    Settings,
    SliceTable,
    Tests,
)
from benchmarks.report.cells import METRICS, OUTDATED, Model, Result
from benchmarks.report.names import printed_rows

SIGNIFICANT = 0.05
STALE = (
    f'{OUTDATED} Outdated: of other settings or protocols than the file of the table '
    'has now, or of runs that were; neither in bold nor compared.'
)


@dataclass(frozen=True)
class Cell:
    """A text with what stands smaller beside it."""

    text: str
    spread: str = ''  # deviation over seeds
    interval: str = ''
    best: bool = False
    faint: bool = False
    code: bool = False
    family: str | None = None
    shade: float | None = None


@dataclass
class Table:
    """Columns, which may have two lines, and rows; the first ``left`` are words."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    caption: str = ''
    left: int = 1
    words: set[int] = field(default_factory=set)  # further columns of words

    def is_word(self, column: int) -> bool:
        """Whether a column is aligned to the left."""
        return column < self.left or column in self.words


def named(model: Model) -> Cell:
    """The first cell of a row."""
    return Cell(model.label, family=model.name.family)


def remarks(models: Iterable[Model]) -> str:
    """Says which models have had more to train on than the others, or are outdated."""
    models = list(models)
    names = dict.fromkeys(model.label for model in models if model.saw_validation)
    text = f' Trained on the validation items, too: {"; ".join(names)}.' * bool(names)
    if any(model.outdated for model in models):
        text += f' {STALE}'
    return text


def left_out(models: Sequence[Model]) -> str:
    """Says that such models are not compared, if there are any."""
    reasons = {
        'trained on the validation items, too,': any(m.saw_validation for m in models),
        f'outdated ({OUTDATED})': any(m.outdated for m in models),
    }
    given = ' or '.join(reason for reason, holds in reasons.items() if holds)
    return f' What is {given} is left out.' * bool(given)


def apart(rows: Sequence[Row]) -> list[list[Row]]:
    """The models that never saw a validation item, then those that did, if any."""
    groups = [
        [r for r in rows if r.model.saw_validation is saw] for saw in (False, True)
    ]
    return [group for group in groups if group]


def of_group(title: str, model: Model) -> str:
    """The title of what is shown of a group, by any model of it."""
    return title + ', trained on the validation items, too' * model.saw_validation


def between(low: float, high: float, write: Callable[[float], str]) -> str:
    """Both ends; nothing where all users have the same, which resamples cannot tell."""
    return '' if low == high else f'[{write(low)}, {write(high)}]'


def ordered(rows: list[Row]) -> list[Row]:
    """From the highest N@10 to the lowest."""
    return sorted(rows, key=lambda row: -row.mean[METRICS.index('N@10')])


def metrics(analysis: Analysis, protocol: str, settings: Settings) -> list[Table]:
    """Metrics under a protocol, the printed ones of the same models beside.

    What was trained on the validation items, too, has a table of its own.
    """
    models = analysis.section.models
    rows = [row for row in analysis.tables[protocol] if row.model in models]
    title = f'Test, {protocol}'
    return [_metrics(title, group, protocol, settings) for group in apart(rows)]


def points(analysis: Analysis, protocol: str, settings: Settings) -> list[Table]:
    """Metrics of the points of all grids, in tables like those of the models."""
    models = analysis.section.models
    rows = [row for row in analysis.tables[protocol] if row.model not in models]
    title = f'Points of the grids, {protocol}'
    return [_metrics(title, group, protocol, settings) for group in apart(rows)]


def _metrics(title: str, rows: list[Row], protocol: str, settings: Settings) -> Table:
    rows = ordered(rows)
    printed = [
        m for m in METRICS if any(r.printed and m in r.printed.metrics for r in rows)
    ]
    current = [row for row in rows if not row.model.outdated]
    best = [
        max((row.mean[i] for row in current), default=None) for i in range(len(METRICS))
    ]
    body, marked = [], False
    for row in rows:
        cells = [named(row.model), Cell(str(row.seeds))]
        for i in range(len(METRICS)):
            spread = interval = ''
            if row.deviation is not None:
                spread = f'± {numbers.decimal(row.deviation[i])}'
            if row.low is not None and row.high is not None:
                interval = between(row.low[i], row.high[i], numbers.decimal)
            value = row.mean[i]
            cells.append(
                Cell(numbers.decimal(value), spread, interval, value == best[i])
            )
        other = row.printed is not None and row.printed.protocol != protocol
        for metric in printed:
            value = row.printed and row.printed.metrics.get(metric)
            mark = '†' if other and value is not None else ''
            marked |= bool(mark)
            cells.append(Cell(numbers.decimal(value) + mark, faint=True))
        body.append(cells)
    caption = 'Mean over seeds' + (
        ', ± their standard deviation' if _several(rows) else ''
    )
    if any(row.low is not None for row in rows):
        caption += (
            f'; in brackets {settings.level:.0%} percentile intervals of '
            f'{settings.resamples:,} bootstrap resamples of the users'
        )
    if marked:
        caption += '. † printed under another protocol than this one'
    columns = ['model', 'seeds', *METRICS, *(f'printed\n{m}' for m in printed)]
    caption += '.' + remarks(row.model for row in rows)
    return Table(of_group(title, rows[0].model), columns, body, caption)


def _several(rows: list[Row]) -> bool:
    return any(row.deviation is not None for row in rows)


def tests(analysis: Analysis, one: Tests, settings: Settings) -> Table:
    """Paired differences to a reference."""
    body = []
    for row in sorted(one.rows, key=lambda r: -r.difference[TESTED.index('N@10')]):
        cells = [named(row.model), Cell(str(row.seeds or '-'))]
        for i in range(len(TESTED)):
            interval = between(row.low[i], row.high[i], numbers.signed)
            found = bool(row.seeds > 1 and row.adjusted[i] < SIGNIFICANT)
            bound = row.p[i] * (1 + settings.signs) < 1.001
            cells += [
                Cell(numbers.signed(row.difference[i]), interval=interval),
                Cell(numbers.p_value(row.p[i], bound)),
                Cell(numbers.p_value(row.adjusted[i], bound), best=found),
            ]
        body.append(cells)
    columns = ['model', 'seeds']
    for metric in TESTED:
        columns += [f'difference\n{metric}', 'p', 'p\nHolm']
    reference = one.reference.name.label
    return Table(
        f'Against {reference}, {one.why}',
        columns,
        body,
        f'{analysis.headline}. Model minus {reference}, users paired, means over the '
        f'seeds that both have (-: none, all of each); {settings.level:.0%} bootstrap '
        f'intervals; two-sided p-values of {settings.signs:,} random signs of the '
        f"differences (exact where all fit), and after Holm's correction over this "
        f'table, bold below {SIGNIFICANT} if several seeds are compared. They ask '
        'whether other users would agree, not other seeds: two seeds of one model may '
        'differ with a small p, too.' + left_out(analysis.section.models),
    )


def slices(part: SliceTable, models: Iterable[Model]) -> Table:
    """N@10 in slices of the users.

    Args:
        part: The slices.
        models: All models of the section.
    """
    best = part.value.max(axis=0)
    order = part.value.mean(axis=1).argsort()[::-1]
    body = []
    for i in order:
        cells = [named(part.models[i])]
        for j, value in enumerate(part.value[i]):
            interval = between(part.low[i, j], part.high[i, j], numbers.decimal)
            share = float(value / best[j]) if best[j] > 0 else 0.0
            top = bool(value == best[j] > 0)
            text = numbers.decimal(value)
            cells.append(Cell(text, interval=interval, best=top, shade=share))
        body.append(cells)
    columns = [
        f'{label}\n{size:,} users'
        for label, size in zip(part.labels, part.sizes, strict=True)
    ]
    caption = (
        'N@10 with bootstrap intervals (none where no user has a hit), shaded by the '
        'share of the best of a column.'
    )
    if any(model.outdated for model in models):
        caption += f' What is outdated ({OUTDATED}) is left out.'
    title = of_group(part.title, part.models[0])
    return Table(title, ['model', *columns], body, caption + remarks(part.models))


def provenance(analysis: Analysis) -> Table:
    """Where each number comes from, and which results are not of today's table."""
    body = [
        [
            Cell(result.name, code=True),
            Cell(str(result.seed)),
            Cell('-' if result.test_reads is None else str(result.test_reads)),
            Cell(_commits(result), code=True),
            Cell((result.get('data_fingerprint') or '-')[:12], code=True),
            Cell(_machine(result)),
            Cell(result.get('command') or '-', code=True),
        ]
        for result in analysis.section.results
    ]
    columns = ['cell', 'seed', 'test\nreads', 'commit', 'data', 'made with', 'command']
    caption = (
        'Every row is a file of results; its protocols are '
        f'{"; ".join(analysis.tables) or analysis.headline}. A second commit is that '
        'of the training. +changes: tracked files differed from the commit. Test '
        'reads: how many models the test items were read for under this name, of which '
        'the last is shown; the former had other settings or inputs (-: not counted).'
    )
    caption += remarks(analysis.section.everything)
    if stale := [r.path.stem for r in analysis.section.results if r.outdated]:
        caption += f' Outdated files: {", ".join(stale)}.'
    return Table('Provenance', columns, body, caption, words={3, 4, 5, 6})


def _commits(result: Result) -> str:
    found = [result.get('commit'), result.get('validation', 'commit')]
    short = [f'{c[:10]}{"+changes" * c.endswith("+changes")}' for c in found if c]
    return ', '.join(dict.fromkeys(short)) or 'outside a checkout'


def _machine(result: Result) -> str:
    versions = result.get('validation', 'versions') or result.get('versions') or {}
    words = [result.get('peer'), result.get('backbone')]
    if layers := result.get('config', 'llm', 'num_layers'):
        words.append(f'its first {layers} layers')
    words += [f'{n} {versions[n]}' for n in ('python', 'torch') if n in versions]
    words.append(result.device)
    return '; '.join(word for word in words if word) or '-'


def printed(dataset: str) -> list[Table]:
    """All that others have printed for a data set."""
    found = []
    for source, rows in printed_rows(dataset):
        columns = [m for m in METRICS if any(m in row.metrics for row in rows)]
        body = [
            [
                Cell(row.model),
                *(Cell(numbers.decimal(row.metrics.get(m))) for m in columns),
                Cell(row.protocol),
            ]
            for row in rows
        ]
        last = len(columns) + 1
        found.append(Table(source, ['model', *columns, 'protocol'], body, words={last}))
    return found
