"""Results that are not those that the file of their table asks for now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.cell import up_to_date
from benchmarks.report.plan import PAPER
from benchmarks.table import cells, load_table
from hellm_pyg.checkpoint import load_json


def outdated(results: Iterable[Path], table: str) -> set[Path]:
    """The files of results that do not answer to the file of their table.

    Such are those that it has no such cell for, of other settings or protocols, and of
    runs other than those whose results lie beside them. Results of other libraries are
    not judged, nor those of a cell with a seed or a data set that the file has not.
    """
    path = PAPER / f'{table}.yaml'
    if not path.is_file():
        return set()
    content = load_table(path)
    known = {cell.key: cell for cell in cells(content)}
    names = {cell.name for cell in known.values()}
    found = set()
    for result in results:
        about = load_json(result, {'name': str})
        if result.stem in known:
            current = up_to_date(
                known[result.stem], known, content['protocols'], result.parent
            )
        else:
            current = 'peer' in about or about['name'] in names
        if not current:
            found.add(result)
    return found
