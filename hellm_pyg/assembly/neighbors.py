"""The nearest items of every item in an embedding."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.features import missing_rows
from hellm_pyg.nn.models.item_graph import neighbor_matrix


def item_neighbors(
    name: str, x: Tensor, k: int, index: Literal['flat', 'ivf'] = 'flat'
) -> Tensor:
    """Returns the nearest other items by cosine, :math:`[I, k]`.

    The search is that of :class:`~hellm_pyg.transforms.KNNHyperedges`. An item whose
    row is missing has itself in all places. Of fewer than :math:`k + 2` items with an
    embedding there are two columns less than those, or none.

    Args:
        name: Name of the embedding, for messages.
        x: Item embeddings, :math:`[I, d]`.
        k: Number of neighbours.
        index: ``'flat'`` is exact, ``'ivf'`` is for large catalogues.

    Raises:
        ValueError: If a row is neither finite nor missing.
    """
    from hellm_pyg.transforms import KNNHyperedges

    missing = missing_rows(x)
    k = min(k, int((~missing).sum()) - 2)
    if k < 1:
        return x.new_empty(x.size(0), 0).long()
    data = HeteroData()
    data['item'][f'x_{name}'], data['item'].num_nodes = x, x.size(0)
    return neighbor_matrix(KNNHyperedges(k + 1, index=index)(data), [name])
