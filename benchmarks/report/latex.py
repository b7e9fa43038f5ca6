"""A report as LaTeX tables in the style of booktabs."""

from __future__ import annotations

import re

from benchmarks.report.document import Document, Part
from benchmarks.report.tables import Cell, Table

HEAD = """\
% \\input this file; it needs \\usepackage{booktabs,graphicx} and UTF-8 sources.
% Written by benchmarks.report.
"""

SPECIAL = {
    '\\': r'\textbackslash{}',
    '&': r'\&',
    '%': r'\%',
    '$': r'\$',
    '#': r'\#',
    '_': r'\_',
    '{': r'\{',
    '}': r'\}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '\N{MINUS SIGN}': '$-$',
    '±': r'$\pm$',
    '≤': r'$\le$',
    '†': r'\textsuperscript{\dag}',
    '‡': r'\textsuperscript{\ddag}',
    '→': r'$\rightarrow$',
    '<': '$<$',
    '>': '$>$',
}


def escape(text: str) -> str:
    """Text as LaTeX shows it."""
    return ''.join(SPECIAL.get(letter, letter) for letter in text)


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.best:
        text = rf'\textbf{{{text}}}'
    if cell.spread:
        text += rf'\,{{\tiny {escape(cell.spread)}}}'
    if cell.interval:
        # A group keeps the bracket from being read as the argument of a row's end.
        lines = rf'{text}\\[-3pt]{{\tiny {escape(cell.interval)}}}'
        text = rf'\begin{{tabular}}[t]{{@{{}}r@{{}}}}{lines}\end{{tabular}}'
    return text


def _column(name: str) -> str:
    if '\n' not in name:
        return escape(name)
    lines = r'\\'.join(escape(line) for line in name.split('\n'))
    return rf'\shortstack{{{lines}}}'


def _table(table: Table, title: str) -> str:
    align = ''.join('l' if table.is_word(i) else 'r' for i in range(len(table.columns)))
    words = f'{title}. {table.caption}'
    caption = re.sub(r'\.\. ', '. ', escape(words.strip()))
    rows = [' & '.join(_cell(cell) for cell in row) for row in table.rows]
    body = '\n'.join(rf'{row} \\' for row in rows)
    return rf"""
\begin{{table*}}[t]
\centering
\renewcommand{{\arraystretch}}{{1.15}}
\caption{{{caption}}}
\label{{tab:{_label(title)}}}
\resizebox{{\ifdim\width>\linewidth \linewidth\else\width\fi}}{{!}}{{%
\begin{{tabular}}{{@{{}}{align}@{{}}}}
\toprule
{' & '.join(_column(column) for column in table.columns)} \\
\midrule
{body}
\bottomrule
\end{{tabular}}}}
\end{{table*}}
"""


def _label(title: str) -> str:
    return re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')


def _part(part: Part) -> str:
    # Commands are longer than a page is wide; they stand in the other two forms.
    shown = [table for table in part.tables if table.title != 'Provenance']
    told = [(f'{part.title}: {table.title}', table) for table in shown]
    told += [
        (f'{part.title}: Expectations, {table.title}', table)
        for table in part.expectations
    ]
    return ''.join(_table(table, title) for title, table in told)


def render(document: Document) -> str:
    """All tables but those of the provenance and all that others have printed."""
    tables = [*document.overview, *document.searches]
    whole = [_table(table, table.title) for table in tables]
    return HEAD + ''.join([*whole, *(_part(part) for part in document.parts)])
