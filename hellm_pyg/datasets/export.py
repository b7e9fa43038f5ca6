"""Graphs as tables that ``InteractionFiles`` and recipes read."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import atomic
from hellm_pyg.datasets.ids import IdMap


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
    user, item = (pa.array(row) for row in edges.edge_index.as_subclass(Tensor).numpy())
    items = {item_id: ids.items}
    if ids.titles is not None:
        items[title] = list(ids.titles)
    items |= data['item'].get('table') or {}
    tables = {'items': pa.table(items)} if len(items) > 1 else {}
    tables['interactions'] = pa.table(
        {
            'user_id': pa.array(ids.users).take(user),
            'item_id': pa.array(ids.items).take(item),
            'time': edges.time.numpy(),
        }
    )
    paths = {name: Path(folder) / f'{name}.parquet' for name in tables}
    for name, table in tables.items():
        with atomic(paths[name]) as temporary:
            parquet.write_table(table, temporary)
    return paths
