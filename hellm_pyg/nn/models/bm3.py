"""BM3: bootstrapped views of users, items and features, without negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.nn.directions import directions
from hellm_pyg.nn.models.base import GraphRecommender, Vectors, check_not_negative
from hellm_pyg.nn.models.lightgcn import BipartiteLightGCN
from hellm_pyg.nn.models.multimodal import ProjectedFeatures


class BM3(GraphRecommender):
    r"""The model of `"Bootstrap Latent Representations for Multi-modal
    Recommendation" <https://arxiv.org/abs/2207.05969>`_.

    With the mean :math:`\mathbf{z}` of the LightGCN layers on the tables
    :math:`\mathbf{Z}^{(0)}`, the predictor :math:`q(\mathbf{x}) =
    \mathbf{W} \mathbf{x} + \mathbf{b}` and :math:`C(\mathbf{x}, \mathbf{y}) =
    1 - \cos(\mathbf{x}, \mathbf{y})`,

    .. math::
        \mathbf{h}_u &= \mathbf{z}_u, \qquad
        \mathbf{h}_i = \mathbf{z}_i + \mathbf{Z}^{(0)}_i, \qquad
        \mathbf{m}_i = \mathbf{W}_m \mathbf{f}^m_i + \mathbf{b}_m, \qquad
        s(u, i) = q(\mathbf{h}_u)^{\top} q(\mathbf{h}_i)

        \mathcal{L} &= \frac{1}{B} \sum_{(u,i)} \Big[
        C(q(\mathbf{h}_u), \mathbf{h}_i') + C(q(\mathbf{h}_i), \mathbf{h}_u')
        + \gamma \sum_m \big( C(q(\mathbf{m}_i), \mathbf{h}_i')
        + C(q(\mathbf{m}_i), \mathbf{m}_i') \big) \Big]
        + \frac{\lambda}{I} (\|\mathbf{H}_U\|_F + \|\mathbf{H}_I\|_F).

    The targets :math:`\mathbf{x}'` are the same vectors after dropout, without
    gradient. Negative items of the batch are not read. An item that lacks a
    modality has no terms in it.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        feature_dims: Width of each modality.
        embedding_dim: Width :math:`D`.
        num_layers: Layers of LightGCN.
        dropout: Dropout of the targets.
        lambda_modality: Weight :math:`\gamma` of the terms of features.
        lambda_reg: Weight :math:`\lambda` of the penalty.
        predict: Whether scores are those of the predictor's outputs. Otherwise
            they are :math:`\mathbf{h}_u^{\top} \mathbf{h}_i`; the loss stays.
        trainable_features: Whether features are fine-tuned.

    Raises:
        ValueError: If an argument is out of range, or the data does not fit.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        feature_dims: dict[str, int],
        embedding_dim: int = 64,
        num_layers: int = 1,
        dropout: float = 0.3,
        lambda_modality: float = 2.0,
        lambda_reg: float = 0.1,
        predict: bool = True,
        trainable_features: bool = True,
    ) -> None:
        super().__init__(num_users, num_items, lambda_reg)
        if not 0 <= dropout < 1:
            raise ValueError(f"'dropout' must lie in [0, 1) (got {dropout})")
        check_not_negative(lambda_modality=lambda_modality)
        self.dropout = dropout
        self.lambda_modality = lambda_modality
        self.predict = predict
        self.features = ProjectedFeatures(
            num_items, feature_dims, embedding_dim, trainable_features
        )
        self.bipartite = BipartiteLightGCN(
            num_users, num_items, embedding_dim, num_layers
        )
        self.predictor = torch.nn.Linear(embedding_dim, embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws tables and layers anew; features start as the data's."""
        self.bipartite.reset_parameters()
        self.features.reset_parameters()
        torch.nn.init.xavier_normal_(self.predictor.weight)
        torch.nn.init.zeros_(self.predictor.bias)

    def outputs(self, data: HeteroData) -> Vectors:
        """Returns the vectors of users [U, D] and items [I, D] before predicting."""
        self.check_size(data)
        user, item = self.bipartite.propagate(data)
        return user, item + self.bipartite.embedding.weight[self.num_users :]

    def encode(self, data: HeteroData) -> Vectors:
        """Returns all user vectors [U, D] and all item vectors [I, D]."""
        user, item = self.outputs(data)
        if not self.predict:
            return user, item
        return self.predictor(user), self.predictor(item)

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        """Returns the mean loss of the pairs, a scalar."""
        batch.check(self.num_users, self.num_items)
        users, items = self.outputs(data)
        user, item = users[batch.user], items[batch.pos_item]
        user_target, item_target = self._target(user), self._target(item)
        loss = self._distance(user, item_target) + self._distance(item, user_target)
        if self.lambda_modality > 0:
            for name in self.features.dims:
                view = self.features.project(data, name, batch.pos_item)
                term = self._distance(view, item_target)
                term = term + self._distance(view, self._target(view))
                known = self.features.present(data, name)[batch.pos_item]
                loss = loss + self.lambda_modality * term.where(known, 0.0)
        penalty = (users.norm() + items.norm()) / self.num_items
        return loss.mean() + self.lambda_reg * penalty

    def _target(self, x: Tensor) -> Tensor:
        return F.dropout(x.detach(), self.dropout, self.training)

    def _distance(self, x: Tensor, target: Tensor) -> Tensor:
        cosine = directions(self.predictor(x)) * directions(target)
        return 1 - cosine.sum(dim=-1)

    def __repr__(self) -> str:
        gcn = self.bipartite
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'{self.features.dims}, {gcn.embedding_dim}, '
            f'num_layers={gcn.num_layers})'
        )
