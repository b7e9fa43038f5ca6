"""LightGCN on the user-item graph."""

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import LGConv
from torch_geometric.nn import LightGCN as PyGLightGCN
from torch_geometric.typing import Adj, OptTensor

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.nn.models.base import GraphRecommender, Vectors
from hellm_pyg.nn.spmm import spmm


class SymmetricLGConv(LGConv):
    r"""The operator of `"LightGCN: Simplifying and Powering Graph Convolution
    Network for Recommendation" <https://arxiv.org/abs/2002.02126>`_ on a
    normalised adjacency matrix that is its own transpose.

    .. math::
        \mathbf{X}^{\prime} = \mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2}
        \mathbf{X}

    The matrix, CSR of shape :math:`[N, N]`, also serves the backward pass.
    """

    def __init__(self) -> None:
        super().__init__(normalize=False)

    def message_and_aggregate(self, adj_t: Adj, x: Tensor) -> Tensor:
        """Multiplies by the matrix."""
        return spmm(adj_t, adj_t, x)


class BipartiteLightGCN(PyGLightGCN):
    r"""PyG's LightGCN over users followed by items, on a CSR matrix.

    .. math::
        \mathbf{Z} = \frac{1}{L + 1} \sum_{l=0}^{L}
        (\mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2})^l \, \mathbf{Z}^{(0)}

    User and item rows get the Xavier bounds of tables of their own.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        embedding_dim: Width :math:`D`.
        num_layers: Number of propagations :math:`L`, 0 for none.
    """

    def __init__(
        self, num_users: int, num_items: int, embedding_dim: int, num_layers: int
    ) -> None:
        for name, value in (
            ('embedding_dim', embedding_dim),
            ('num_layers', num_layers),
        ):
            if value < (name == 'embedding_dim'):
                raise ValueError(f"'{name}' is too small (got {value})")
        self.sizes = [num_users, num_items]
        super().__init__(num_users + num_items, embedding_dim, num_layers)
        self.convs = torch.nn.ModuleList(SymmetricLGConv() for _ in range(num_layers))

    def reset_parameters(self) -> None:
        """Draws both tables anew."""
        super().reset_parameters()
        for rows in self.embedding.weight.data.split(self.sizes):
            torch.nn.init.xavier_uniform_(rows)

    def get_embedding(self, edge_index: Adj, edge_weight: OptTensor = None) -> Tensor:
        """Returns the mean of all layers, [N, D], whatever :obj:`alpha` holds.

        Args:
            edge_index: The matrix, CSR of shape [N, N], or edges [2, E].
            edge_weight: Weights of edges, [E].
        """
        x = total = self.embedding.weight
        for conv in self.convs:
            x = conv(x, edge_index, edge_weight)
            total = total + x
        return total * (1 / (self.num_layers + 1))  # faster than a division

    def propagate(self, data: HeteroData) -> Vectors:
        """Returns user vectors [U, D] and item vectors [I, D].

        Raises:
            ValueError: If the data lacks the normalised adjacency matrix.
        """
        if 'ui_adj' not in data:
            raise ValueError(
                "The data has no 'ui_adj' (got the stores "
                f'{data.node_types}); apply the transform UserItemGraph first'
            )
        user, item = self.get_embedding(data.ui_adj).split(self.sizes)
        return user, item


class LightGCN(GraphRecommender):
    r"""The model of `"LightGCN: Simplifying and Powering Graph Convolution
    Network for Recommendation" <https://arxiv.org/abs/2002.02126>`_.

    .. math::
        \mathcal{L} = \frac{1}{B} \sum_{(u,i,j)} -\ln \sigma(s(u,i) - s(u,j))
        + \frac{\lambda}{B} \left( \|\mathbf{Z}^{(0)}_u\|_F
        + \|\mathbf{Z}^{(0)}_i\|_F + \|\mathbf{Z}^{(0)}_j\|_F \right)

    The penalty is on the rows of the tables that the batch reads, before
    propagation; it is the norm, not its square.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        embedding_dim: Width :math:`D`.
        num_layers: Number of propagations :math:`L`.
        lambda_reg: Weight :math:`\lambda` of the penalty.

    Raises:
        ValueError: If a number is out of range, or the data does not fit.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        num_layers: int = 3,
        lambda_reg: float = 1e-4,
    ) -> None:
        super().__init__(num_users, num_items, lambda_reg)
        self.bipartite = BipartiteLightGCN(
            num_users, num_items, embedding_dim, num_layers
        )

    def reset_parameters(self) -> None:
        """Draws both tables anew."""
        self.bipartite.reset_parameters()

    def encode(self, data: HeteroData) -> Vectors:
        """Returns all user vectors [U, D] and all item vectors [I, D]."""
        self.check_size(data)
        return self.bipartite.propagate(data)

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        """Returns the mean loss of the triples, a scalar."""
        batch.check(self.num_users, self.num_items)
        loss = self.ranking_loss(self.encode(data), batch, lambda_reg=0.0)
        if self.lambda_reg == 0:
            return loss
        table = self.bipartite.embedding.weight
        rows = (
            batch.user,
            self.num_users + batch.pos_item,
            self.num_users + batch.neg_item,
        )
        penalty = torch.stack([table[index].norm() for index in rows]).sum()
        return loss + self.lambda_reg * penalty / batch.num_targets

    def __repr__(self) -> str:
        gcn = self.bipartite
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'{gcn.embedding_dim}, num_layers={gcn.num_layers})'
        )
