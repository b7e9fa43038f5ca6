"""Histories without their last interactions, to rehearse the test before it."""

from __future__ import annotations

import torch
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from hellm_pyg.data.split import INTERACTS, chronological, interaction_edges


@functional_transform('drop_last')
class DropLast(BaseTransform):
    r"""Leaves out each user's last interactions
    (functional name: :obj:`drop_last`).

    Before :class:`LeaveOneOut` this rehearses a test: with ``count=1`` the
    ``test_item`` of users of four interactions or more is what is ``val_item``
    without. Validation and test ask different things: a model has been trained on the
    last item that it reads before a validation target, but on none of those between
    training and test. Settings that are chosen in a rehearsal are chosen under the
    conditions of the test, whose items are no part of the data.

    Order is as of :class:`LeaveOneOut`. Users of no more than ``count`` interactions
    keep none; the numbers of users and items stay. Edges end sorted by user, then
    time, with their other attributes.

    Args:
        count: Interactions left out of each history. (default: :obj:`1`)

    Raises:
        ValueError: If ``count`` is no whole number or below 1.
    """

    def __init__(self, count: int = 1) -> None:
        if type(count) is not int or count < 1:
            raise ValueError(f"'count' needs to be a number from 1 on (got {count!r})")
        self.count = count

    def forward(self, data: HeteroData) -> HeteroData:
        """Removes the edges.

        Raises:
            ValueError: If the data are split already, an interaction is of no user or
                item of the data, or no history is longer than ``count``.
        """
        if 'val_item' in data['user'] or 'test_item' in data['user']:
            raise ValueError(
                "'data' is split already (got 'val_item' among the user attributes): "
                "apply 'DropLast' before 'LeaveOneOut'"
            )
        store = data[INTERACTS]
        edge_index = interaction_edges(data)
        order = chronological(edge_index[0], store.get('time'))
        user = edge_index[0, order]
        count = torch.bincount(user, minlength=int(data['user'].num_nodes))
        index = torch.arange(user.numel(), device=user.device)
        position = index - (count.cumsum(0) - count)[user]
        kept = order[position < (count - self.count)[user]]
        if user.numel() > 0 and kept.numel() == 0:
            raise ValueError(
                f"'count' needs to be below {int(count.max())}, the number of "
                f'interactions of the longest history (got {self.count})'
            )
        for name in store.edge_attrs():
            if name != 'edge_index':
                store[name] = store[name][kept]
        store.edge_index = edge_index[:, kept]
        return data

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.count})'
