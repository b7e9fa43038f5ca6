"""GRCN: a user-item graph whose edges are weighted by the features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce, scatter

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.nn.directions import directions
from hellm_pyg.nn.models.base import GraphRecommender, Vectors
from hellm_pyg.nn.models.edges import Edges
from hellm_pyg.nn.models.item_graph import plain_tensor
from hellm_pyg.nn.models.kept import Kept
from hellm_pyg.nn.models.multimodal import ProjectedFeatures


class GRCN(GraphRecommender):
    r"""The model of `"Graph-Refined Convolutional Network for Multimedia
    Recommendation with Implicit Feedback" <https://arxiv.org/abs/2008.10171>`_.

    Of each modality, features and preferences of users are unit vectors
    :math:`\mathbf{f}_i = \mathrm{nrm}(\mathrm{LeakyReLU}(\mathbf{W}
    \mathbf{x}_i + \mathbf{b}))` and :math:`\mathbf{p}_u`. Some rounds of
    routing draw a preference to the features of the user's items,

    .. math::
        w_{ui} = \mathrm{softmax}_{i \in \mathcal{N}(u)}
        (\mathbf{p}_u^{\top} \mathbf{f}_i), \qquad
        \mathbf{p}_u \leftarrow \mathrm{nrm} \Big( \mathbf{p}_u +
        \sum_{i \in \mathcal{N}(u)} w_{ui} \mathbf{f}_i \Big),

    and one attention convolution in both directions ends the branch: with
    :math:`\mathbf{X} = [\mathbf{P}; \mathbf{F}]`,

    .. math::
        \alpha_{j \to i} = \mathrm{softmax}_{j \in \mathcal{N}(i)}
        (\mathbf{x}_i^{\top} \mathbf{x}_j), \qquad
        \mathbf{c}_i = \mathbf{x}_i +
        \sum_{j \in \mathcal{N}(i)} \alpha_{j \to i} \mathbf{x}_j.

    The attention, scaled by a trained confidence of its source in the
    modality, weighs the edges of the graph that unit vectors :math:`\mathbf{Q}`
    of the ids are propagated on:

    .. math::
        A_{ij} = \mathrm{relu} \big( \max_m \alpha^m_{j \to i}
        \kappa^m_j \big), \qquad
        \mathbf{Y} = \mathbf{Q} + \mathbf{A} \mathbf{Q} + \mathbf{A}^2 \mathbf{Q},
        \qquad \mathbf{e} = [\mathbf{y} \, \| \, \mathbf{c}^1 \, \| \, \mathbf{c}^2
        \, \| \ldots]

    The penalty :math:`\lambda` weighs the mean of :math:`q_u^2 + q_i^2` over
    the batch's user-item pairs, positive and negative, the mean square of the
    batch's preferences in each modality, and once more that of all preferences
    in the first; tables are meant, not their unit vectors.

    An item without a modality has the zero vector there: it sends nothing and
    has no share in its users' attention, but receives the mean of its users.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        feature_dims: Width of each modality.
        embedding_dim: Width :math:`D`; vectors are :math:`(1 + M) D` wide.
        num_routing: Rounds of routing.
        lambda_reg: Weight :math:`\lambda` of the penalty.
        routing_bug: Leaves the routing without effect, as does a popular
            implementation whose messages go from users to items.

    Raises:
        ValueError: If an argument is out of range, or the data does not fit.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        feature_dims: dict[str, int],
        embedding_dim: int = 64,
        num_routing: int = 3,
        lambda_reg: float = 1e-3,
        routing_bug: bool = False,
    ) -> None:
        super().__init__(num_users, num_items, lambda_reg)
        for name, value, least in (
            ('embedding_dim', embedding_dim, 1),
            ('num_routing', num_routing, 0),
        ):
            if value < least:
                raise ValueError(f"'{name}' is too small (got {value})")
        self.num_routing = num_routing
        self.routing_bug = routing_bug
        self.features = ProjectedFeatures(num_items, feature_dims, embedding_dim)
        num_nodes = num_users + num_items
        self.preference = torch.nn.ParameterDict(
            {
                name: torch.nn.Parameter(torch.empty(num_users, embedding_dim))
                for name in self.features.dims
            }
        )
        self.embedding = torch.nn.Embedding(num_nodes, embedding_dim)
        self.confidence = torch.nn.Embedding(num_nodes, len(feature_dims))
        self._edges: Kept[Edges] = Kept()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws tables and layers anew."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_normal_(parameter)
            else:
                torch.nn.init.zeros_(parameter)

    def encode(self, data: HeteroData) -> Vectors:
        """Returns all user vectors and all item vectors, (1 + M) D wide."""
        self.check_size(data)
        edges = self._interactions(data)
        user_trust = F.embedding(edges.row, self.confidence.weight)
        item_trust = F.embedding(self.num_users + edges.col, self.confidence.weight)
        users, items, to_user, to_item = [], [], [], []
        for m, name in enumerate(self.features.dims):
            p, f, of_user, of_item = self._branch(data, name, edges)
            users.append(p)
            items.append(f)
            to_user.append(of_user * item_trust[:, m])
            to_item.append(of_item * user_trust[:, m])
        from_item = torch.stack(to_user).amax(dim=0).relu()
        from_user = torch.stack(to_item).amax(dim=0).relu()
        sizes = [self.num_users, self.num_items]
        x, y = directions(self.embedding.weight).split(sizes)
        total_x, total_y = x, y
        for _ in range(2):
            x, y = edges.sum(from_item, y), edges.sum(from_user, x, transpose=True)
            total_x, total_y = total_x + x, total_y + y
        return torch.cat([total_x, *users], dim=1), torch.cat([total_y, *items], dim=1)

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        """Returns the mean loss of the triples, a scalar."""
        batch.check(self.num_users, self.num_items)
        loss = self.ranking_loss(self.encode(data), batch, 0.0)
        if self.lambda_reg == 0:
            return loss
        neg = batch.neg_item.view(batch.num_targets, -1)
        item = torch.cat([batch.pos_item.unsqueeze(1).expand_as(neg), neg])
        penalty = self.embedding(batch.user).pow(2).mean()
        penalty = penalty + self.embedding(self.num_users + item).pow(2).mean()
        tables = list(self.preference.values())
        penalty = penalty + tables[0].pow(2).mean()
        for table in tables:
            penalty = penalty + F.embedding(batch.user, table).pow(2).mean()
        return loss + self.lambda_reg * penalty

    def _interactions(self, data: HeteroData) -> Edges:
        """Distinct interactions, users being rows."""
        source = data['user', 'interacts', 'item'].edge_index

        def make() -> Edges:
            pairs = coalesce(plain_tensor(source))
            return Edges.from_pairs(pairs, self.num_users, self.num_items)

        return self._edges.get([source], make)

    def _branch(
        self, data: HeteroData, name: str, edges: Edges
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors of users and items, attention of users and of items [E]."""
        present = self.features.present(data, name)
        f = F.leaky_relu(self.features.project(data, name))
        f = directions(f) * present.unsqueeze(1)
        p = directions(self.preference[name])
        sends = present[edges.col]
        if not self.routing_bug:
            for _ in range(self.num_routing):
                share = _attention(edges.dot(p, f), edges.row, self.num_users, sends)
                p = directions(p + edges.sum(share, f))
        score = edges.dot(p, f)
        to_user = _attention(score, edges.row, self.num_users, sends)
        to_item = _attention(score, edges.col, self.num_items)
        return (
            p + edges.sum(to_user, f),
            f + edges.sum(to_item, p, transpose=True),
            to_user,
            to_item,
        )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'{self.features.dims}, {self.embedding.embedding_dim})'
        )


def _attention(
    score: Tensor, index: Tensor, size: int, sends: Tensor | None = None
) -> Tensor:
    """Softmax over the edges of each receiver, 0 where nothing is sent."""
    # Inner products of unit vectors: there is nothing to subtract before exp.
    weight = score.exp() if sends is None else score.exp() * sends
    total = scatter(weight, index, dim_size=size, reduce='sum')
    return weight / total.where(total > 0, 1.0)[index]
