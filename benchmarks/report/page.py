"""A report as one page that needs nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.report.document import Document, Part
from benchmarks.report.figures import Figure, effort, ladder, results
from benchmarks.report.names import ORDER
from benchmarks.report.prose import blocks, spans
from benchmarks.report.svg import escape, tag
from benchmarks.report.tables import Cell, Table

STYLE = Path(__file__).with_name('style.css')


def _family(family: str) -> str:
    return f'f-{family.replace(" ", "-")}'


def _cell(cell: Cell, word: bool, heading: bool) -> str:
    parts = [escape(cell.text)]
    if cell.code:
        parts = [tag('code', *parts)]
    elif cell.best:
        parts = [tag('strong', *parts)]
    if cell.family is not None:
        parts = [tag('i', class_=f'key {_family(cell.family)}'), *parts]
    if cell.spread:
        parts.append(tag('span', escape(f' {cell.spread}'), class_='spread'))
    if cell.interval:
        parts.append(tag('small', escape(cell.interval)))
    classes = [name for name, on in (('word', word), ('faint', cell.faint)) if on]
    shade = None if cell.shade is None else f'--share:{cell.shade:.2f}'
    return tag(
        'th' if heading else 'td',
        *parts,
        class_=' '.join(classes) or None,
        scope='row' if heading else None,
        style=shade,
    )


def _table(table: Table, level: int | None = 4) -> str:
    """A table under its title as a heading of that level, if any."""
    columns = []
    for i, name in enumerate(table.columns):
        lines = '<br>'.join(escape(line) for line in name.split('\n'))
        word = 'word' if table.is_word(i) else None
        columns.append(tag('th', lines, scope='col', class_=word))
    rows = [
        tag(
            'tr',
            *(_cell(cell, table.is_word(i), i == 0) for i, cell in enumerate(row)),
        )
        for row in table.rows
    ]
    shaded = any(cell.shade is not None for row in table.rows for cell in row)
    whole = tag(
        'table',
        tag('thead', tag('tr', *columns)),
        tag('tbody', *rows),
        class_='shaded' if shaded else None,
    )
    parts = [tag(f'h{level}', escape(table.title))] if level else []
    label = table.title  # of what a keyboard scrolls
    parts.append(
        tag('div', whole, class_='scroll', tabindex=0, role='region', aria_label=label)
    )
    if table.caption:
        parts.append(tag('p', escape(table.caption), class_='caption'))
    return ''.join(parts)


def _folded(title: str, *content: str) -> str:
    return tag('details', tag('summary', escape(title)), *content)


def _figure(figure: Figure) -> str:
    plots = [tag('div', plot, class_='plot') for plot in figure.plots]
    return tag(
        'figure',
        tag('h3', escape(figure.title)),
        tag('div', *plots, class_='plots'),
        tag('figcaption', escape(figure.caption), class_='caption'),
    )


def _line(text: str) -> str:
    return spans(
        text,
        escape,
        lambda bold: tag('strong', escape(bold)),
        lambda code: tag('code', escape(code)),
    )


def _notes(markdown: str) -> str:
    shown = []
    for block in blocks(markdown):
        if block.is_list:
            items = [tag('li', _line(item)) for item in block.items]
            shown.append(tag('ul', *items))
        else:
            shown.append(tag('p', _line(block.items[0])))
    return tag('div', *shown, class_='notes') if shown else ''


def _legend(part: Part) -> str:
    present = {model.name.family for model in part.analysis.section.everything}
    keys = [
        tag('li', tag('i', class_=f'key {_family(family)}'), escape(family))
        for family in ORDER
        if family in present
    ]
    return tag('ul', *keys, class_='legend')


def anchor(title: str) -> str:
    """The name of a part in an address."""
    return re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')


def _part(part: Part) -> str:
    parts = [
        tag('h2', escape(part.title)),
        tag('p', escape(part.summary), class_='summary'),
        _notes(part.notes),
        _legend(part),
        *(_figure(figure) for figure in ladder(part.ladder)),
        *(_table(table, None) for table in part.rungs),
        *(_figure(figure) for figure in results(part.analysis)),
    ]
    if part.metrics:
        first, *others = part.metrics
        parts += [tag('h3', 'Test metrics'), _table(first)]
        parts += [_folded(table.title, _table(table, None)) for table in others]
    parts += [_folded(table.title, _table(table, None)) for table in part.points]
    if part.tests:
        parts.append(tag('h3', 'Paired tests'))
        first, *others = part.tests
        parts.append(_table(first))
        parts += [_folded(table.title, _table(table, None)) for table in others]
    parts += [_figure(figure) for figure in effort(part.analysis)]
    parts += [_table(table) for table in part.costs]
    if part.slices:
        parts.append(tag('h3', 'Slices of the users'))
        parts += [_table(table) for table in part.slices]
    parts += [tag('p', _line(remark), class_='caption') for remark in part.remarks]
    if part.failed:
        told = [
            tag(
                'li',
                tag('code', escape(failed['name'])),
                escape(f', seed {failed["seed"]}: {failed.get("error", "")}'),
            )
            for failed in part.failed
        ]
        parts += [tag('h3', 'Failed'), tag('ul', *told)]
    if part.expectations:
        parts.append(tag('h3', 'Expectations'))
        parts += [_table(table) for table in part.expectations]
    parts.append(tag('h3', 'Provenance and printed numbers'))
    parts += [_folded(table.title, _table(table, None)) for table in part.records]
    if part.printed:
        tables = [_table(table) for table in part.printed]
        parts.append(_folded('Printed by others', *tables))
    return tag('section', *parts, id=anchor(part.title))


def _overview(tables: list[Table]) -> str:
    shown = [_table(table, 2) for table in tables]
    return tag('section', *shown, id='overview') if tables else ''


def _searches(document: Document) -> str:
    if not document.searches:
        return ''
    budgets, *trials = document.searches
    parts = [
        tag('h2', 'Searches'),
        _notes(document.search_notes),
        _table(budgets, None),
        *(_folded(table.title, _table(table, None)) for table in trials),
    ]
    return tag('section', *parts, id='searches')


def render(document: Document) -> str:
    """The whole page."""
    titles = ['Overview'] * bool(document.overview)
    titles += [part.title for part in document.parts]
    titles += ['Searches'] * bool(document.searches)
    links = [tag('a', escape(title), href=f'#{anchor(title)}') for title in titles]
    head = tag(
        'head',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        tag('title', 'Results'),
        tag('style', STYLE.read_text()),
    )
    body = tag(
        'body',
        tag('header', tag('h1', 'Results'), tag('p', escape(document.summary))),
        tag('nav', *links, aria_label='Parts') if len(links) > 1 else '',
        tag(
            'main',
            _overview(document.overview),
            *(_part(part) for part in document.parts),
            _searches(document),
        ),
    )
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'
