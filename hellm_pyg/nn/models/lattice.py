"""LATTICE: an item graph that is learned from features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.typing import Adj

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.nn.directions import directions
from hellm_pyg.nn.models.base import GraphRecommender, Vectors
from hellm_pyg.nn.models.edges import Edges
from hellm_pyg.nn.models.item_graph import (
    cosines,
    csr_matrices,
    nearest_rows,
    neighbor_pairs,
    normalize_pairs,
    plain_tensor,
    root_inverse,
)
from hellm_pyg.nn.models.kept import Kept
from hellm_pyg.nn.models.lightgcn import BipartiteLightGCN, SymmetricLGConv
from hellm_pyg.nn.models.multimodal import ProjectedFeatures
from hellm_pyg.nn.spmm import spmm


class RandomWalkLGConv(SymmetricLGConv):
    r"""Averages a node and its neighbours, given the symmetric matrix.

    .. math::
        \mathbf{X}^{\prime} = (\mathbf{D} + \mathbf{I})^{-1}
        (\mathbf{A} + \mathbf{I}) \mathbf{X}
    """

    def message_and_aggregate(self, adj_t: Adj, x: Tensor) -> Tensor:
        """Undoes the normalisation, adds the node itself and normalises."""
        degree = adj_t.crow_indices().diff().unsqueeze(1).to(x.dtype)
        root = degree.sqrt()
        return (root * spmm(adj_t, adj_t, root * x) + x) / (degree + 1)


class LATTICE(GraphRecommender):
    r"""The model of `"Mining Latent Structures for Multimedia Recommendation"
    <https://arxiv.org/abs/2104.09036>`_, on sparse neighbourhoods.

    With :math:`\mathbf{z}` the mean of layers :math:`(\mathbf{D} +
    \mathbf{I})^{-1} (\mathbf{A} + \mathbf{I})` of the user-item graph on the
    tables :math:`\mathbf{Z}^{(0)}`,

    .. math::
        \mathbf{e}_u &= \mathbf{z}_u, \qquad \mathbf{e}_i = \mathbf{z}_i +
        \frac{\mathbf{h}_i}{\|\mathbf{h}_i\|_2}, \qquad
        \mathbf{H} = \mathbf{S}^{L_I} \mathbf{Z}^{(0)}_I, \qquad
        \mathbf{S} = \eta \sum_m \mu_m \, \mathrm{norm}(\mathbf{S}^m) + (1 - \eta)
        \, \mathrm{norm} \Big( \sum_m \mu_m \tilde{\mathbf{S}}^m \Big)

        \mathcal{L} &= \frac{1}{B} \sum_{(u,i,j)} \left[
        -\ln \sigma(s(u, i) - s(u, j)) + \frac{\lambda}{2} (
        \|\mathbf{e}_u\|^2 + \|\mathbf{e}_i\|^2 + \|\mathbf{e}_j\|^2) \right].

    :math:`\mathbf{S}^m` holds the cosine similarities of the data's features
    on the pairs of ``('item', 'member_of', '<m>_hyperedge')``,
    :math:`\tilde{\mathbf{S}}^m` those of :math:`\mathbf{W}_m \mathbf{f}^m +
    \mathbf{b}_m` with the ``num_neighbors`` nearest items; :math:`\mathrm{norm}`
    divides by the roots of the row sums on both sides. The weights
    :math:`\mu_m` are the softmax of trained scalars over the modalities that an
    item has; an item without any has :math:`\mathbf{h}_i = 0` and is nobody's
    neighbour.

    Who the nearest are is found at each epoch, block by block, and kept in a
    buffer. With ``refresh='step'`` the similarities of these pairs and the
    weights follow the parameters in each step. With ``'epoch'``, as in the
    published code, only the first step of an epoch sends gradients into them,
    and they keep that step's values for the rest of the epoch.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        feature_dims: Width of each modality.
        embedding_dim: Width :math:`D`, also that of the projected features.
        num_layers: Layers of the user-item graph.
        num_item_layers: Layers :math:`L_I` of the item graph.
        num_neighbors: Neighbours in the learned graph, the item included.
        raw_share: Share :math:`\eta` of the graph of raw features.
        refresh: ``'step'`` or ``'epoch'``.
        lambda_reg: Weight :math:`\lambda` of the penalty.
        trainable_features: Whether features are fine-tuned.

    Raises:
        ValueError: If an argument is out of range, or the data does not fit.
    """

    neighbor: Tensor
    similarity: Tensor
    mixture: Tensor
    fresh: Tensor

    def __init__(
        self,
        num_users: int,
        num_items: int,
        feature_dims: dict[str, int],
        embedding_dim: int = 64,
        num_layers: int = 2,
        num_item_layers: int = 1,
        num_neighbors: int = 10,
        raw_share: float = 0.9,
        refresh: Literal['step', 'epoch'] = 'step',
        lambda_reg: float = 1e-4,
        trainable_features: bool = True,
    ) -> None:
        super().__init__(num_users, num_items, lambda_reg)
        if num_neighbors < 1 or num_item_layers < 0:
            raise ValueError(
                "'num_neighbors' must be positive and 'num_item_layers' not negative "
                f'(got {num_neighbors} and {num_item_layers})'
            )
        if not 0 <= raw_share <= 1:
            raise ValueError(f"'raw_share' must lie in [0, 1] (got {raw_share})")
        if refresh not in ('step', 'epoch'):
            raise ValueError(f"'refresh' must be 'step' or 'epoch' (got {refresh!r})")
        self.num_item_layers = num_item_layers
        self.raw_share = raw_share
        self.refresh = refresh
        self.features = ProjectedFeatures(
            num_items, feature_dims, embedding_dim, trainable_features
        )
        self.bipartite = BipartiteLightGCN(
            num_users, num_items, embedding_dim, num_layers
        )
        convs = [RandomWalkLGConv() for _ in range(num_layers)]
        self.bipartite.convs = torch.nn.ModuleList(convs)
        self.modality_logit = torch.nn.Parameter(torch.empty(len(feature_dims)))
        shape = (len(feature_dims), num_items, num_neighbors)
        self.register_buffer('neighbor', torch.full(shape, -1))  # -1: nobody
        self.register_buffer('similarity', torch.zeros(shape))
        self.register_buffer('mixture', torch.zeros(len(feature_dims)))
        self.register_buffer('fresh', torch.tensor(True))
        self._learned: Kept[list[Edges]] = Kept()
        self._raw: Kept[list[Vectors]] = Kept()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws tables and projections anew; modalities weigh the same."""
        self.bipartite.reset_parameters()
        self.features.reset_parameters()
        torch.nn.init.constant_(self.modality_logit, 0.5)
        self.neighbor.fill_(-1)

    @torch.no_grad()
    def on_epoch_start(self, data: HeteroData) -> None:
        """Finds the neighbours of the learned graphs anew."""
        for m, name in enumerate(self.features.dims):
            x = directions(self.features.project(data, name))
            node = self.features.present(data, name).nonzero().view(-1)
            near = nearest_rows(x[node], self.neighbor.size(2))
            self.neighbor[m] = -1
            self.neighbor[m, node, : near.size(1)] = node[near]
        self.similarity.zero_()
        known = self.neighbor >= 0
        self.similarity[known] = torch.cat(self._similarities(data)).to(self.similarity)
        self.mixture.copy_(self.modality_logit)
        self.fresh.fill_(True)

    def encode(self, data: HeteroData) -> Vectors:
        """Returns all user vectors [U, D] and all item vectors [I, D]."""
        self.check_size(data)
        if bool(self.neighbor.max() < 0):
            self.on_epoch_start(data)
        user, item = self.bipartite.propagate(data)
        h = self._propagate_items(data)
        return user, item + directions(h)

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        """Returns the mean loss of the triples, a scalar."""
        batch.check(self.num_users, self.num_items)
        # The penalty counts half of the squared norm.
        loss = self.ranking_loss(self.encode(data), batch, self.lambda_reg / 2)
        if self.training:
            self.fresh.fill_(False)
        return loss

    def _propagate_items(self, data: HeteroData) -> Tensor:
        logit: Tensor = self.mixture
        if self.refresh == 'step' or (self.training and bool(self.fresh)):
            learned, logit = self._similarities(data), self.modality_logit
        else:
            pairs = zip(self.similarity, self.neighbor, strict=True)
            learned = [value[neighbor >= 0] for value, neighbor in pairs]
        has = torch.stack([self.features.present(data, m) for m in self.features.dims])
        weight = torch.exp(logit - logit.max()).unsqueeze(1) * has
        total = weight.sum(dim=0)
        weight = weight / total.where(total > 0, 1.0)  # [M, I]
        weight = weight.unsqueeze(2)
        raw = self._raw_matrices(data)
        h = self.bipartite.embedding.weight[self.num_users :]
        graphs = list(zip(weight, raw, self._learned_edges(), learned, strict=True))
        one = h.new_ones(self.num_items, 1)
        degree = torch.stack([w * edges.sum(s, one) for w, _, edges, s in graphs])
        scale = root_inverse(degree.sum(dim=0))
        for _ in range(self.num_item_layers):
            fixed, near = torch.zeros_like(h), torch.zeros_like(h)
            for w, matrices, edges, s in graphs:
                fixed = fixed + w * spmm(*matrices, h)
                near = near + w * edges.sum(s, scale * h)
            h = self.raw_share * fixed + (1 - self.raw_share) * scale * near
        return h

    def _learned_edges(self) -> list[Edges]:
        """Each item and its neighbours in the learned graphs."""

        def make() -> list[Edges]:
            out = []
            for neighbor in self.neighbor:
                item, place = (neighbor >= 0).nonzero(as_tuple=True)
                pairs = torch.stack([item, neighbor[item, place]])
                out.append(Edges.from_pairs(pairs, self.num_items, self.num_items))
            return out

        return self._learned.get([self.neighbor], make)

    def _similarities(self, data: HeteroData) -> list[Tensor]:
        """Similarities of the learned graphs, one an edge."""
        out = []
        for name, edges in zip(self.features.dims, self._learned_edges(), strict=True):
            x = directions(self.features.project(data, name))
            out.append(edges.dot(x, x))
        return out

    def _raw_matrices(self, data: HeteroData) -> list[Vectors]:
        """The graphs of raw features and their transposes, kept while data stay."""
        pairs = [neighbor_pairs(data, name) for name in self.features.dims]
        raw = [self.features.raw(data, name)[0] for name in self.features.dims]

        def make() -> list[Vectors]:
            matrices = []
            for source, x in zip(pairs, raw, strict=True):
                edges = plain_tensor(source)
                value = normalize_pairs(edges, cosines(edges, x), self.num_items)
                matrices.append(csr_matrices(edges, value, self.num_items))
            return matrices

        return self._raw.get([*pairs, *raw], make)

    def __repr__(self) -> str:
        gcn = self.bipartite
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'{self.features.dims}, {gcn.embedding_dim}, '
            f'num_layers={gcn.num_layers})'
        )
