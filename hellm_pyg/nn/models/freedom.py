"""FREEDOM: a frozen item graph beside a pruned user-item graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.nn.models.base import GraphRecommender, Vectors, check_not_negative
from hellm_pyg.nn.models.item_graph import (
    csr_matrices,
    neighbor_pairs,
    normalize_pairs,
    plain_tensor,
)
from hellm_pyg.nn.models.kept import Kept
from hellm_pyg.nn.models.lightgcn import BipartiteLightGCN
from hellm_pyg.nn.models.multimodal import ProjectedFeatures, triple_loss
from hellm_pyg.nn.spmm import spmm


class FREEDOM(GraphRecommender):
    r"""The model of `"A Tale of Two Graphs: Freezing and Denoising Graph
    Structures for Multimodal Recommendation"
    <https://arxiv.org/abs/2211.06924>`_.

    With the mean :math:`\mathbf{z}` of the LightGCN layers on the tables
    :math:`\mathbf{Z}^{(0)}`, and binary :math:`K`-nearest-neighbour matrices
    :math:`\mathbf{N}^m` that are normalised by their row sums on both sides,

    .. math::
        \mathbf{e}_u &= \mathbf{z}_u, \qquad \mathbf{e}_i = \mathbf{z}_i +
        (\mathbf{S}^{L_I} \mathbf{Z}^{(0)}_I)_i, \qquad \mathbf{S} = \sum_m \mu_m
        \mathbf{D}_m^{-1/2} \mathbf{N}^m \mathbf{D}_m^{-1/2}

        \mathcal{L} &= \frac{1}{B} \sum_{(u,i,j)} \left[ \ell(\mathbf{e}_u,
        \mathbf{e}_i, \mathbf{e}_j) + \lambda \sum_m \ell(\mathbf{e}_u,
        \mathbf{W}_m \mathbf{f}^m_i, \mathbf{W}_m \mathbf{f}^m_j) \right], \qquad
        \ell(\mathbf{a}, \mathbf{b}, \mathbf{c}) =
        -\ln \sigma(\mathbf{a}^{\top} \mathbf{b} - \mathbf{a}^{\top} \mathbf{c}).

    In training mode LightGCN runs on a pruned graph, drawn at each epoch: the
    share ``edge_dropout`` of the interactions is left out, the others being
    drawn without replacement with probabilities in proportion to
    :math:`1 / \sqrt{d_u d_i}`, and normalised with the pruned degrees. In
    evaluation mode it runs on the whole graph.

    Of an item the weights :math:`\mu_m` of the modalities that it has are
    scaled to sum to what all of them do; an item without any has no
    neighbours. A triple with an item that lacks a modality has no loss in it.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        feature_dims: Width of each modality.
        embedding_dim: Width :math:`D`.
        num_layers: Layers of LightGCN.
        num_item_layers: Layers :math:`L_I` of the item graph; 0 leaves it out.
        edge_dropout: Share of the interactions that an epoch leaves out.
        modality_weights: Weights :math:`\mu_m`, as in ``{'image': 0.1, 'text':
            0.9}`` of the article; None for equal ones that sum to 1.
        lambda_modality: Weight :math:`\lambda` of the losses of the modalities.
        trainable_features: Whether features are fine-tuned.

    Raises:
        ValueError: If an argument is out of range, or the data does not fit.
    """

    pruning_seed: Tensor

    def __init__(
        self,
        num_users: int,
        num_items: int,
        feature_dims: dict[str, int],
        embedding_dim: int = 64,
        num_layers: int = 2,
        num_item_layers: int = 1,
        edge_dropout: float = 0.8,
        modality_weights: dict[str, float] | None = None,
        lambda_modality: float = 1e-3,
        trainable_features: bool = True,
    ) -> None:
        super().__init__(num_users, num_items)
        if not 0 <= edge_dropout < 1:
            raise ValueError(f"'edge_dropout' must lie in [0, 1) (got {edge_dropout})")
        check_not_negative(
            num_item_layers=num_item_layers, lambda_modality=lambda_modality
        )
        # A bias would cancel in the difference of two items.
        self.features = ProjectedFeatures(
            num_items, feature_dims, embedding_dim, trainable_features, bias=False
        )
        names = list(self.features.dims)
        weights = modality_weights or {name: 1 / len(names) for name in names}
        positive = all(0 < weight < math.inf for weight in weights.values())
        if set(weights) != set(names) or not positive:
            raise ValueError(
                f"'modality_weights' needs a positive weight for each of {names} "
                f'(got {modality_weights})'
            )
        self.modality_weights = {name: weights[name] for name in names}
        self.num_item_layers = num_item_layers
        self.edge_dropout = edge_dropout
        self.lambda_modality = lambda_modality
        self.bipartite = BipartiteLightGCN(
            num_users, num_items, embedding_dim, num_layers
        )
        # The seed stands for the graph, whose size only the data know.
        self.register_buffer('pruning_seed', torch.tensor(-1))
        self._item_graph: Kept[tuple[Tensor, Tensor]] = Kept()
        self._pruned: Kept[Tensor] = Kept()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws tables and projections anew; features start as the data's."""
        self.bipartite.reset_parameters()
        self.features.reset_parameters()

    def on_epoch_start(self, data: HeteroData) -> None:
        """Draws the interactions that this epoch trains on."""
        self.pruning_seed.copy_(torch.randint(2**62, ()))

    def encode(self, data: HeteroData) -> Vectors:
        """Returns all user vectors [U, D] and all item vectors [I, D]."""
        self.check_size(data)
        if self.training and self.edge_dropout > 0:
            z = self.bipartite.get_embedding(self.pruned_adjacency(data))
            user, item = z.split(self.bipartite.sizes)
        else:
            user, item = self.bipartite.propagate(data)
        if self.num_item_layers == 0:
            return user, item
        h = self.bipartite.embedding.weight[self.num_users :]
        matrix, transposed = self.item_graph(data)
        for _ in range(self.num_item_layers):
            h = spmm(matrix, transposed, h)
        return user, item + h

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        """Returns the mean loss of the triples, a scalar."""
        batch.check(self.num_users, self.num_items)
        encoded = self.encode(data)
        loss = self.ranking_loss(encoded, batch, 0.0)
        if self.lambda_modality == 0:
            return loss
        user, size = encoded[0][batch.user], batch.num_targets
        index = torch.cat([batch.pos_item, batch.neg_item.flatten()])
        for name in self.features.dims:
            pos, neg = self.features.project(data, name, index).tensor_split([size])
            terms = triple_loss(user, pos, neg.view(size, -1, pos.size(1)))
            known = self.features.present(data, name)[index]
            known = known[:size] & known[size:].view(size, -1).all(dim=1)
            loss = loss + self.lambda_modality * terms.where(known, 0.0).mean()
        return loss

    def item_graph(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        """Returns the item graph [I, I] and its transpose, both CSR.

        It is kept for as long as the data holds the same tensors, unchanged.
        """
        sources = [neighbor_pairs(data, name) for name in self.modality_weights]
        return self._item_graph.get(sources, lambda: self._mix(sources))

    def _mix(self, sources: list[Tensor]) -> tuple[Tensor, Tensor]:
        pairs = [plain_tensor(source) for source in sources]
        weights = torch.tensor(list(self.modality_weights.values()))
        weights = weights.to(pairs[0].device)
        has = torch.zeros(self.num_items, len(pairs), device=weights.device)
        for m, edges in enumerate(pairs):
            has[edges[0], m] = 1
        share = has * weights * (weights.sum() / (has @ weights)).unsqueeze(1)
        values = [
            share[edges[0], m]
            * normalize_pairs(edges, weights.new_ones(edges.size(1)), len(has))
            for m, edges in enumerate(pairs)
        ]
        joined, value = coalesce(torch.cat(pairs, dim=1), torch.cat(values))
        return csr_matrices(joined, value, self.num_items)

    def pruned_adjacency(self, data: HeteroData) -> Tensor:
        """Returns this epoch's normalised user-item graph, CSR [U + I, U + I]."""
        if self.pruning_seed < 0:
            self.on_epoch_start(data)
        source = data['user', 'interacts', 'item'].edge_index
        seed = int(self.pruning_seed)
        return self._pruned.get([source, seed], lambda: self._prune(source, seed))

    def _prune(self, source: Tensor, seed: int) -> Tensor:
        user, item = coalesce(plain_tensor(source))
        rate = (user.bincount()[user] * item.bincount()[item]).double().rsqrt()
        # The first arrivals at these rates are a weighted sample without replacement.
        generator = torch.Generator().manual_seed(seed)
        chance = torch.rand(user.numel(), generator=generator, dtype=torch.double)
        arrival = -torch.log1p(-chance).to(rate.device) / rate
        size = round((1 - self.edge_dropout) * user.numel())
        size = min(max(1, size), user.numel())
        chosen = arrival.topk(size, largest=False).indices
        user, item = user[chosen], item[chosen] + self.num_users
        both = torch.stack([torch.cat([user, item]), torch.cat([item, user])])
        num_nodes = self.num_users + self.num_items
        ones = torch.ones(both.size(1), device=both.device)
        value = normalize_pairs(both, ones, num_nodes)
        return csr_matrices(both, value, num_nodes)[0]

    def __repr__(self) -> str:
        gcn = self.bipartite
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'{self.features.dims}, {gcn.embedding_dim}, '
            f'num_layers={gcn.num_layers})'
        )
