"""Results that are not those that the file of their table asks for now."""

from __future__ import annotations

from benchmarks.cell import finished
from benchmarks.report.cells import Section
from benchmarks.report.plan import PAPER
from benchmarks.table import cells, load_table


def outdated(section: Section) -> list[str]:
    """Names of the results that ``benchmarks.run`` would make anew.

    A result without a cell in the file is not judged: its seed, or the library that
    made it, is another.
    """
    path = PAPER / f'{section.table}.yaml'
    if not path.is_file():
        return []
    table = load_table(path)
    found = {result.path.stem: result.path for result in section.results}
    return [
        cell.key
        for cell in cells(table)
        if cell.key in found and not finished(cell, table['protocols'], found[cell.key])
    ]
