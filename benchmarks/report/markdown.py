"""A report as Markdown."""

from __future__ import annotations

from benchmarks.report.document import Document, Part
from benchmarks.report.tables import Cell, Table


def _cell(cell: Cell) -> str:
    text = cell.text.replace('|', '\\|')
    if cell.code:
        text = f'`{text}`'
    elif cell.best:
        text = f'**{text}**'
    return ' '.join(part for part in (text, cell.spread, cell.interval) if part)


def _row(values: list[str]) -> str:
    return f'| {" | ".join(values)} |'


def _table(table: Table, level: int) -> list[str]:
    columns = [column.replace('\n', ' ') for column in table.columns]
    rule = ['---' if table.is_word(i) else '--:' for i in range(len(columns))]
    return [
        f'{"#" * level} {table.title}',
        '',
        *([table.caption, ''] if table.caption else []),
        _row(columns),
        f'|{"|".join(rule)}|',
        *(_row([_cell(cell) for cell in row]) for row in table.rows),
        '',
    ]


def _part(part: Part) -> list[str]:
    lines = [f'## {part.title}', '', part.summary, '']
    lines += [part.notes, ''] if part.notes else []
    for table in part.tables:
        lines += _table(table, 3)
    lines += part.remarks and [*(f'- {remark}' for remark in part.remarks), '']
    if part.failed:
        lines += ['### Failed', '']
        for failed in part.failed:
            told = ' '.join(str(failed.get('error', '')).split())
            lines += [f'- `{failed["name"]}`, seed {failed["seed"]}: {told}']
        lines.append('')
    if part.expectations:
        lines += ['### Expectations', '']
        for table in part.expectations:
            lines += _table(table, 4)
    if part.printed:
        lines += ['### Printed by others', '']
        for table in part.printed:
            lines += _table(table, 4)
    return lines


def render(document: Document) -> str:
    """The whole report."""
    lines = ['# Results', '', document.summary, '']
    for table in document.overview:
        lines += _table(table, 2)
    for part in document.parts:
        lines += _part(part)
    lines += [document.search_notes, ''] if document.search_notes else []
    for table in document.searches:
        lines += _table(table, 2)
    return '\n'.join(lines).rstrip() + '\n'
