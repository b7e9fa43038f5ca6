"""VBPR: matrix factorisation that also reads item features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.nn.models.base import GraphRecommender, Vectors
from hellm_pyg.nn.models.multimodal import ItemFeatures, triple_loss


class VBPR(GraphRecommender):
    r"""The model of `"VBPR: Visual Bayesian Personalized Ranking from Implicit
    Feedback" <https://arxiv.org/abs/1510.01784>`_ without bias terms.

    .. math::
        \mathbf{e}_i = [\mathbf{q}_i \, \| \, \mathbf{W}
        [\mathbf{f}^1_i \| \mathbf{f}^2_i \| \ldots] + \mathbf{b}], \qquad
        s(u, i) = \mathbf{p}_u^{\top} \mathbf{e}_i

        \mathcal{L} = \frac{1}{B} \sum_{(u,i,j)} -\ln \sigma(s(u,i) - s(u,j))
        + \frac{\lambda}{B} \left( \|\mathbf{E}_u\|_F + \|\mathbf{E}_i\|_F
        + \|\mathbf{E}_j\|_F \right)

    The penalty is on the vectors of the batch; it is the norm, not its square.
    A missing modality enters as zeros. There is no graph: what a user did
    after training is not seen.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        feature_dims: Width of each modality.
        embedding_dim: Width :math:`D` of each half; vectors are :math:`2D` wide.
        lambda_reg: Weight :math:`\lambda` of the penalty.

    Raises:
        ValueError: If a number is out of range, or the data does not fit.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        feature_dims: dict[str, int],
        embedding_dim: int = 64,
        lambda_reg: float = 1e-2,
    ) -> None:
        super().__init__(num_users, num_items, lambda_reg)
        if embedding_dim < 1:
            raise ValueError(f"'embedding_dim' must be positive (got {embedding_dim})")
        self.features = ItemFeatures(num_items, feature_dims)
        self.user_embedding = torch.nn.Embedding(num_users, 2 * embedding_dim)
        self.item_embedding = torch.nn.Embedding(num_items, embedding_dim)
        width = sum(self.features.dims.values())
        self.projection = torch.nn.Linear(width, embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws tables and projection anew."""
        torch.nn.init.xavier_uniform_(self.user_embedding.weight)
        torch.nn.init.xavier_uniform_(self.item_embedding.weight)
        torch.nn.init.xavier_normal_(self.projection.weight)
        torch.nn.init.zeros_(self.projection.bias)

    def encode(self, data: HeteroData) -> Vectors:
        """Returns all user vectors [U, 2D] and all item vectors [I, 2D]."""
        self.check_size(data)
        every = torch.arange(self.num_items, device=self.item_embedding.weight.device)
        return self.user_embedding.weight, self._items(data, every)

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        """Returns the mean loss of the triples, a scalar.

        Only the batch's items are projected.
        """
        batch.check(self.num_users, self.num_items)
        self.check_size(data)
        user = self.user_embedding(batch.user)
        index = torch.cat([batch.pos_item, batch.neg_item.flatten()])
        pos, neg = self._items(data, index).tensor_split([batch.num_targets])
        loss = triple_loss(user, pos, neg.view(batch.num_targets, -1, pos.size(1)))
        penalty = user.norm() + pos.norm() + neg.norm()
        return loss.mean() + self.lambda_reg * penalty / batch.num_targets

    def _items(self, data: HeteroData, index: Tensor) -> Tensor:
        parts = [self.features(data, name, index) for name in self.features.dims]
        x = torch.cat(parts, dim=1).to(self.projection.weight.dtype)
        return torch.cat([self.item_embedding(index), self.projection(x)], dim=1)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'{self.features.dims}, {self.item_embedding.embedding_dim})'
        )
