"""The leave-one-out split of every user's sequence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from hellm_pyg.data.split import INTERACTS, chronological, interaction_edges


@functional_transform('leave_one_out')
class LeaveOneOut(BaseTransform):
    r"""Holds out each user's last two interactions
    (functional name: :obj:`leave_one_out`).

    The last item becomes ``test_item`` of the user, the one before ``val_item``, and
    the edges keep the rest. Order is by ``time``; interactions of equal time keep the
    order of the edges (of the file). A user of one or two interactions keeps them all
    for training and has the targets -1.

    Writes ``val_item`` and ``test_item`` (and ``val_time``, ``test_time`` if edges
    have a ``time``), each of shape :math:`[U]`. Edges end sorted by user, then time,
    with their other attributes and filled :class:`~torch_geometric.EdgeIndex` caches.
    """

    def forward(self, data: HeteroData) -> HeteroData:
        """Splits the data.

        Raises:
            ValueError: If the data are split already, or an interaction is of no user
                or item of the data.
        """
        if 'val_item' in data['user'] or 'test_item' in data['user']:
            raise ValueError(
                "'data' is split already (got 'val_item' among the user attributes): "
                "apply 'LeaveOneOut' once"
            )
        store = data[INTERACTS]
        edge_index = interaction_edges(data)
        num_users, num_items = int(data['user'].num_nodes), int(data['item'].num_nodes)
        order = chronological(edge_index[0], store.get('time'))
        user, item = edge_index[:, order]
        count = torch.bincount(user, minlength=num_users)
        end = count.cumsum(0)
        has_target = count >= 3
        train = torch.ones_like(user, dtype=torch.bool)
        for back, split in enumerate(('test', 'val'), start=1):
            held_out = end[has_target] - back
            train[held_out] = False
            data['user'][f'{split}_item'] = _per_user(item, held_out, has_target)
            if 'time' in store:
                time = store.time[order]
                data['user'][f'{split}_time'] = _per_user(time, held_out, has_target)
        for name in store.edge_attrs():
            if name != 'edge_index':
                store[name] = store[name][order[train]]
        store.edge_index = EdgeIndex(
            torch.stack([user[train], item[train]]),
            sparse_size=(num_users, num_items),
            sort_order='row',
        ).fill_cache_()
        return data


def _per_user(value: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    out = value.new_full((mask.numel(),), -1)
    out[mask] = value[index]
    return out
