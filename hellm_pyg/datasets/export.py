"""Graphs as tables that ``InteractionFiles`` and recipes read."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import atomic
from hellm_pyg.datasets.ids import IdMap


def export_tables(
    data: HeteroData, ids: IdMap, folder: str | os.PathLike[str]
) -> dict[str, Path]:
    """Writes ``interactions.parquet`` and ``items.parquet``, in original ids.

    Args:
        data: A graph with all its interactions.
        ids: Its ids.
        folder: The folder; other files in it stay.

    Returns:
        The two paths, under ``'interactions'`` (columns ``user_id``, ``item_id``,
        ``time``) and ``'items'`` (``item_id``, ``title``, free columns).
    """
    import pyarrow as pa
    from pyarrow import parquet

    edges = data['user', 'interacts', 'item']
    user, item = edges.edge_index.as_subclass(Tensor)
    items = {'item_id': ids.items}
    if ids.titles is not None:
        items['title'] = list(ids.titles)
    items |= data['item'].get('table') or {}
    tables = {
        'items': pa.table(items),
        'interactions': pa.table(
            {
                'user_id': ids.user_id(user),
                'item_id': ids.item_id(item),
                'time': edges.time.numpy(),
            }
        ),
    }
    paths = {name: Path(folder) / f'{name}.parquet' for name in tables}
    for name, table in tables.items():
        with atomic(paths[name]) as temporary:
            parquet.write_table(table, temporary)
    return paths
