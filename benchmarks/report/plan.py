"""What the file of a table says of its cells: their order and the base."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks.table import cells, load_table

PAPER = Path(__file__).parents[1] / 'paper'


class Plan(NamedTuple):
    """The names of all runs, points of grids included, and the one to compare with."""

    order: list[str]
    base: str | None

    def place(self, name: str) -> int:
        """Where a run stands; what the file does not have comes last."""
        return self.order.index(name) if name in self.order else len(self.order)


def load_plan(table: str) -> Plan:
    """The plan of the table of a name, empty if the article's tables have none such."""
    path = PAPER / f'{table}.yaml'
    if not path.is_file():
        return Plan([], None)
    content = load_table(path)
    names = dict.fromkeys(cell.name for cell in cells(content))
    return Plan(list(names), content.get('base'))
