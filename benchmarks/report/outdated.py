"""Results that are not those that the file of their table asks for now."""

from __future__ import annotations

from benchmarks.cell import up_to_date
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
    known = {cell.key: cell for cell in cells(table)}
    return [
        result.path.stem
        for result in section.results
        if result.path.stem in known
        and not up_to_date(
            known[result.path.stem], known, table['protocols'], result.path.parent
        )
    ]
