"""The normalised bipartite graph of the training interactions."""

from __future__ import annotations

from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from hellm_pyg.data.split import INTERACTS, require_split, user_item_adjacency


@functional_transform('user_item_graph')
class UserItemGraph(BaseTransform):
    r"""Writes the user-item graph that LightGCN propagates over
    (functional name: :obj:`user_item_graph`).

    ``data.ui_adj`` becomes the CSR matrix
    :math:`\mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2}` of shape
    :math:`[U + I, U + I]` with users first, see
    :func:`~hellm_pyg.data.user_item_adjacency`.
    """

    def forward(self, data: HeteroData) -> HeteroData:
        """Builds the graph.

        Raises:
            ValueError: If the data are not split, since held-out items would leak.
        """
        require_split(data, "'UserItemGraph'")
        data.ui_adj = user_item_adjacency(
            data[INTERACTS].edge_index,
            int(data['user'].num_nodes),
            int(data['item'].num_nodes),
        )
        return data
