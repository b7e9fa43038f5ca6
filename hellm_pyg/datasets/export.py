"""Graphs as tables that ``InteractionFiles`` and recipes read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import atomic
from hellm_pyg.data.split import edge_tensor
from hellm_pyg.datasets.ids import IdMap

if TYPE_CHECKING:
    import pyarrow


def export_tables(
    data: HeteroData,
    ids: IdMap,
    folder: str | os.PathLike[str],
    item_id: str = 'item_id',
    title: str = 'title',
) -> dict[str, Path]:
    """Writes ``interactions.parquet`` and ``items.parquet``, in original ids.

    Args:
        data: A graph with all its interactions.
        ids: Its ids.
        folder: The folder; other files in it stay.
        item_id: Column of the ids in the table of the items.
        title: Its column of the titles.

    Returns:
        The two paths, under ``'interactions'`` (columns ``user_id``, ``item_id``,
        ``time``) and ``'items'`` (ids, titles, free columns); without the latter
        if nothing is known of the items but their ids.
    """
    import pyarrow as pa
    from pyarrow import parquet

    edges = data['user', 'interacts', 'item']
    user, item = (pa.array(row) for row in edge_tensor(edges.edge_index).numpy())
    items = {item_id: _column(ids.items)}
    if ids.titles is not None:
        items[title] = _column(ids.titles)
    table = data['item'].get('table') or {}
    items |= {name: _column(values) for name, values in table.items()}
    tables = {'items': pa.table(items)} if len(items) > 1 else {}
    tables['interactions'] = pa.table(
        {
            'user_id': _column(ids.users).take(user),
            'item_id': items[item_id].take(item),
            'time': edges.time.numpy(),
        }
    )
    paths = {name: Path(folder) / f'{name}.parquet' for name in tables}
    for name, table in tables.items():
        with atomic(paths[name]) as temporary:
            parquet.write_table(table, temporary)
    return paths


def _column(values: Sequence[Any]) -> pyarrow.Array:
    import pyarrow as pa

    try:
        return pa.array(values)
    except OverflowError:  # hashes fill 64 bits without a sign
        return pa.array(values, pa.uint64())
