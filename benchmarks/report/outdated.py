"""Results that are not those that the file of their table asks for now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.cell import up_to_date
from benchmarks.report.plan import PAPER
from benchmarks.table import cells, load_table


def outdated(results: Iterable[Path], table: str) -> set[Path]:
    """The files of results that ``benchmarks.run`` would make anew.

    A result without a cell in the file is not judged: its seed, or the library that
    made it, is another.
    """
    path = PAPER / f'{table}.yaml'
    if not path.is_file():
        return set()
    content = load_table(path)
    known = {cell.key: cell for cell in cells(content)}
    return {
        result
        for result in results
        if result.stem in known
        and not up_to_date(
            known[result.stem], known, content['protocols'], result.parent
        )
    }
