"""The nearest items of every item in an embedding."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import HeteroData


def item_neighbors(x: Tensor, k: int, index: Literal['flat', 'ivf'] = 'flat') -> Tensor:
    """Returns the nearest other items by cosine, :math:`[I, k]`.

    The search is that of :class:`~hellm_pyg.transforms.KNNHyperedges`. An item whose
    row is missing has itself in all places.

    Args:
        x: Item embeddings, :math:`[I, d]`.
        k: Number of neighbours.
        index: ``'flat'`` is exact, ``'ivf'`` is for large catalogues.

    Raises:
        ValueError: If ``k`` is not positive, or fewer than :math:`k + 2` items have an
            embedding.
    """
    from hellm_pyg.transforms import KNNHyperedges

    missing = x.isnan().all(dim=1) | (x == 0).all(dim=1)
    most = int((~missing).sum()) - 2
    if not 1 <= k <= most:
        raise ValueError(
            f"'k' needs to be between 1 and {most}, two less than there are items with "
            f'an embedding (got {k})'
        )
    data = HeteroData()
    data['item'].x_own, data['item'].num_nodes = x, x.size(0)
    data = KNNHyperedges(k + 1, index=index)(data)
    item, near = data['item', 'member_of', 'own_hyperedge'].edge_index
    other = item != near  # an item is always among its k + 1
    neighbor = torch.arange(x.size(0)).unsqueeze(1).repeat(1, k)
    present = item[other].view(-1, k)[:, 0]
    neighbor[present] = near[other].view(-1, k)
    return neighbor
