"""The item table: one row an item, an id column, free columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hellm_pyg.datasets.columns import encode_ids, read_values
from hellm_pyg.datasets.ids import Id
from hellm_pyg.datasets.rows import RowCheck
from hellm_pyg.datasets.tables import (
    Source,
    column_names,
    is_untyped,
    read_table,
    require_column,
)


@dataclass(frozen=True)
class ItemTable:
    """Free columns about the items, in the order of the file.

    Args:
        ids: Id of each row.
        titles: Title of each row, if there is a title column.
        columns: The other columns, name to values.
    """

    ids: list[Id]
    titles: list[str] | None
    columns: dict[str, list[Any]]

    def rows(self, items: list[Id]) -> NDArray[np.int64]:
        """Row of each item, -1 if it has none; ``'7'`` and ``7`` are one id."""
        row = {str(value): index for index, value in enumerate(self.ids)}
        return np.array([row.get(str(value), -1) for value in items], dtype=np.int64)

    def named(self, item_id: str, title: str | None) -> dict[str, list[Any]]:
        """All columns by their own names, as templates read them.

        The titles are ``'title'``, too, where no other column has this name.

        Args:
            item_id: Name of the column of the ids.
            title: Name of that of the titles.
        """
        columns: dict[str, list[Any]] = {item_id: list(self.ids), **self.columns}
        if self.titles is not None and title is not None:
            columns = {'title': self.titles} | columns | {title: self.titles}
        return columns


def read_items(source: Source, item_id: str, title: str | None) -> ItemTable:
    """Reads an item table.

    Args:
        source: CSV, TSV, Parquet, JSON lines or a frame.
        item_id: Column of the ids.
        title: Column of the titles; the usual ``'title'`` may be absent.

    Raises:
        ValueError: If a column is missing, or an id is missing or repeated.
    """
    names = column_names(source)
    require_column(item_id, names, source, 'item_id')
    if title is not None and title != 'title':
        require_column(title, names, source, 'title')
    table = read_table(source, names)
    rows = RowCheck(
        source, 'refuse', table.num_rows, '; fill in the id or drop the row'
    )
    distinct, code = encode_ids(table[item_id], item_id, 'item', rows)
    if len(distinct) < code.size:
        repeated = int(np.argmax(np.bincount(code) > 1))
        first, second = (np.flatnonzero(code == repeated)[:2] + 1).tolist()
        raise ValueError(
            f"'{source}': column '{item_id}' needs each item once (got "
            f'{distinct[repeated]!r} in rows {first} and {second}); drop one of them'
        )
    titles = None
    if title is not None and title in names:
        values = read_values(table[title], title, source, False)
        titles = ['' if value is None else str(value) for value in values]
    columns = {
        name: read_values(table[name], name, source, is_untyped(source))
        for name in names
        if name not in (item_id, title)
    }
    return ItemTable([distinct[c] for c in code.tolist()], titles, columns)


def reorder(values: list[Any], rows: NDArray[np.int64]) -> list[Any]:
    """The values at rows; where the row is -1, ``''`` among text, else None."""
    text = any(isinstance(value, str) for value in values)
    empty = '' if text else None
    return [values[row] if row >= 0 else empty for row in rows.tolist()]
