"""The pre-trained graph model: LightGCN beside two hypergraphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.nn.conv.light_hypergraph_conv import NORMALIZATIONS, LightHypergraphConv
from hellm_pyg.nn.directions import directions
from hellm_pyg.nn.loss import ContrastiveLoss
from hellm_pyg.nn.models.base import GraphRecommender, Vectors, check_not_negative
from hellm_pyg.nn.models.item_graph import plain_tensor
from hellm_pyg.nn.models.kept import Kept
from hellm_pyg.nn.models.lightgcn import BipartiteLightGCN
from hellm_pyg.nn.parameter_names import check_parameter_names


class NodeViews(NamedTuple):
    """What the two branches say about users, or about items.

    Args:
        bipartite: Output of LightGCN, float of shape [N, D].
        hypergraph: Last layer of the hypergraph branch, [N, D]; None if the
            branch is off.
    """

    bipartite: Tensor
    hypergraph: Tensor | None

    @property
    def fused(self) -> Tensor:
        """The bipartite view plus the normalised hypergraph view."""
        if self.hypergraph is None:
            return self.bipartite
        return self.bipartite + directions(self.hypergraph)

    def of(self, node: Tensor) -> NodeViews:
        """The views of some nodes, int64 of shape [n]."""
        hypergraph = None if self.hypergraph is None else self.hypergraph[node]
        return NodeViews(self.bipartite[node], hypergraph)


def concat_incidence(
    edge_indices: Sequence[Tensor], num_nodes: int, sizes: Sequence[int]
) -> EdgeIndex:
    r"""Puts hypergraphs on the same nodes side by side.

    .. math::
        \mathbf{H} = [\mathbf{H}^{1} \, | \, \mathbf{H}^{2} \, | \, \ldots]

    Args:
        edge_indices: Incidences, nodes first, each int64 of shape
            :math:`[2, \mathrm{nnz}]`.
        num_nodes: Number of nodes.
        sizes: Number of hyperedges of each.

    Returns:
        The incidence, sorted by node.
    """
    parts, offset = [], 0
    for edge_index, size in zip(edge_indices, sizes, strict=True):
        index = plain_tensor(edge_index)
        parts.append(index + index.new_tensor([[0], [offset]]))
        offset += size
    joined = torch.cat(parts, dim=1)
    joined = joined[:, joined[0].argsort(stable=True)]
    return EdgeIndex(joined, sparse_size=(num_nodes, offset), sort_order='row')


class HeLLMPre(GraphRecommender):
    r"""The pre-training model of HeLLM: LightGCN on the user-item graph,
    fused with a hypergraph of users and one of items.

    Users are the nodes of a hypergraph whose hyperedges are the items they
    share; items are the nodes of a hypergraph whose hyperedges are the
    neighbourhoods of all modalities. With the last hypergraph layer
    :math:`\mathbf{h}` and the mean of the LightGCN layers :math:`\mathbf{z}`,

    .. math::
        \mathbf{e} &= \mathbf{z} + \frac{\mathbf{h}}{\|\mathbf{h}\|_2}, \qquad
        s(u, i) = \mathbf{e}_u^{\top} \mathbf{e}_i

        \mathcal{L} &= \frac{1}{B} \sum_{(u,i,j)} \left[
        -\ln \sigma(s(u, i) - s(u, j)) + \frac{\lambda}{2} (
        \|\mathbf{e}_u\|^2 + \|\mathbf{e}_i\|^2 + \|\mathbf{e}_j\|^2) \right]
        + \alpha \, \mathrm{CL}(\mathbf{e}_U, \mathbf{h}_U)
        + \beta \, \mathrm{CL}(\mathbf{e}_I, \mathbf{h}_I).

    CL is :class:`~hellm_pyg.nn.loss.ContrastiveLoss`. With ``scope='batch'``
    it contrasts the distinct users and the distinct positive items of the
    mini-batch (negatives of the ranking loss take no part); with a number,
    these are the anchors; with ``'full'`` all users and all items take part.

    The data must hold ``ui_adj``, and for the item hypergraph one relation
    ``('item', 'member_of', '<modality>_hyperedge')`` a modality.

    Ablations: ``u2u=False`` leaves out the user hypergraph with its fusion
    and its contrast, ``i2i=False`` that of items, ``contrastive=False`` the
    two contrastive terms only; ``alpha=0`` or ``beta=0`` one of these.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        embedding_dim: Width :math:`D`.
        num_layers: Layers of LightGCN.
        num_user_layers: Layers of the user hypergraph.
        num_item_layers: Layers of the item hypergraph.
        u2u: Whether the user hypergraph is used.
        i2i: Whether the item hypergraph is used.
        contrastive: Whether the contrastive terms are used.
        alpha: Weight of the contrastive term of users.
        beta: Weight of the contrastive term of items.
        temperature: Temperature of the contrastive terms.
        lambda_reg: Weight :math:`\lambda` of the penalty.
        normalization_user: Normalisation of the user hypergraph, a name that
            :class:`~hellm_pyg.nn.conv.LightHypergraphConv` knows.
        normalization_item: Normalisation of the item hypergraph.
        contrast_anchor: What is contrasted with the hypergraph view:
            ``'fused'`` or ``'bipartite'``.
        scope: Which nodes are contrasted: ``'batch'``, ``'full'``, or the
            number of negatives to sample.
        symmetric: Whether the hypergraph view is an anchor, too.
        intra_view: Whether nodes of the anchor's view are negatives, too.
        trainable_hyperedge_weight: Whether hyperedges carry trained weights,
            1 at the start and positive, held as logarithms.
        modalities: Names of the modalities to read; None for all that the
            data has. Needed with trainable weights.

    Raises:
        ValueError: If an argument is out of range, or the data does not fit.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        num_layers: int = 2,
        num_user_layers: int = 3,
        num_item_layers: int = 2,
        u2u: bool = True,
        i2i: bool = True,
        contrastive: bool = True,
        alpha: float = 0.03,
        beta: float = 0.07,
        temperature: float = 0.5,
        lambda_reg: float = 1e-3,
        normalization_user: str = 'clique_rw',
        normalization_item: str = 'clique_sym',
        contrast_anchor: str = 'fused',
        scope: Literal['batch', 'full'] | int = 'batch',
        symmetric: bool = False,
        intra_view: bool = True,
        trainable_hyperedge_weight: bool = False,
        modalities: Sequence[str] | None = None,
    ) -> None:
        super().__init__(num_users, num_items, lambda_reg)
        check_not_negative(
            num_user_layers=num_user_layers,
            num_item_layers=num_item_layers,
            alpha=alpha,
            beta=beta,
        )
        for name, normalization in (
            ('normalization_user', normalization_user),
            ('normalization_item', normalization_item),
        ):
            if normalization not in NORMALIZATIONS:
                raise ValueError(
                    f"'{name}' must be one of {list(NORMALIZATIONS)} "
                    f'(got {normalization!r})'
                )
        if contrast_anchor not in ('fused', 'bipartite'):
            raise ValueError(
                "'contrast_anchor' must be 'fused' or 'bipartite' "
                f'(got {contrast_anchor!r})'
            )
        if isinstance(modalities, str):
            modalities = [modalities]
        if trainable_hyperedge_weight and i2i and modalities is None:
            raise ValueError(
                "'trainable_hyperedge_weight' needs to know the item hypergraphs "
                "(got modalities=None); name them, as in modalities=['text']"
            )
        check_parameter_names('modalities', modalities or ())
        self.num_user_layers = num_user_layers
        self.num_item_layers = num_item_layers
        self.contrastive = contrastive
        self.alpha = alpha
        self.beta = beta
        self.contrast_anchor = contrast_anchor
        self.modalities = None if modalities is None else tuple(modalities)
        self.bipartite = BipartiteLightGCN(
            num_users, num_items, embedding_dim, num_layers
        )
        self.user_embedding, self.item_embedding = (
            torch.nn.Embedding(size, embedding_dim) if used else None
            for size, used in ((num_users, u2u), (num_items, i2i))
        )
        self.user_conv = LightHypergraphConv(normalization_user)
        self.item_conv = LightHypergraphConv(normalization_item)
        self.contrast = ContrastiveLoss(temperature, symmetric, intra_view, scope)
        self.user_log_weight: torch.nn.Parameter | None = None
        self.item_log_weight = torch.nn.ParameterDict()
        if trainable_hyperedge_weight and u2u:
            self.user_log_weight = torch.nn.Parameter(torch.empty(num_items))
        if trainable_hyperedge_weight and i2i:
            for name in self.modalities or ():
                self.item_log_weight[name] = torch.nn.Parameter(torch.empty(num_items))
        self._incidence: Kept[EdgeIndex] = Kept()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all tables anew and sets hyperedge weights to 1."""
        self.bipartite.reset_parameters()
        for table in (self.user_embedding, self.item_embedding):
            if table is not None:
                torch.nn.init.xavier_uniform_(table.weight)
        if self.user_log_weight is not None:
            torch.nn.init.zeros_(self.user_log_weight)
        for weight in self.item_log_weight.values():
            torch.nn.init.zeros_(weight)

    def encode(self, data: HeteroData) -> Vectors:
        """Returns all fused user vectors [U, D] and item vectors [I, D]."""
        user, item = self.views(data)
        return user.fused, item.fused

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        """Returns the ranking loss plus the contrastive terms, a scalar."""
        batch.check(self.num_users, self.num_items)
        user, item = self.views(data)
        if not self.contrastive or self.contrast.scope == 'batch':
            user, item, batch = _without_others(user, item, batch)
        fused = user.fused, item.fused
        # The penalty counts half of the squared norm.
        loss = self.ranking_loss(fused, batch, self.lambda_reg / 2)
        anchors = fused
        if self.contrast_anchor == 'bipartite':
            anchors = user.bipartite, item.bipartite
        for weight, anchor, other, index in (
            (self.alpha, anchors[0], user.hypergraph, batch.user),
            (self.beta, anchors[1], item.hypergraph, batch.pos_item),
        ):
            if self.contrastive and weight > 0 and other is not None:
                loss = loss + weight * self.contrast(anchor, other, index)
        return loss

    def views(self, data: HeteroData) -> tuple[NodeViews, NodeViews]:
        """Returns both views of all users and of all items."""
        self.check_size(data)
        user, item = self.bipartite.propagate(data)
        return (
            NodeViews(user, self._user_hypergraph(data)),
            NodeViews(item, self._item_hypergraph(data)),
        )

    def _user_hypergraph(self, data: HeteroData) -> Tensor | None:
        if self.user_embedding is None:
            return None
        x = self.user_embedding.weight
        weight = None if self.user_log_weight is None else self.user_log_weight.exp()
        incidence = data['user', 'interacts', 'item'].edge_index
        for _ in range(self.num_user_layers):
            x = self.user_conv(x, incidence, weight, self.num_items)
        return x

    def _item_hypergraph(self, data: HeteroData) -> Tensor | None:
        if self.item_embedding is None:
            return None
        x, weight = self.item_embedding.weight, None
        incidence = self.item_incidence(data)
        if self.item_log_weight:
            names = self.modalities or ()
            weight = torch.cat([self.item_log_weight[name] for name in names]).exp()
        for _ in range(self.num_item_layers):
            x = self.item_conv(x, incidence, weight, incidence.get_sparse_size(1))
        return x

    def item_incidence(self, data: HeteroData) -> EdgeIndex:
        """Returns the incidence of items in the hyperedges of all modalities.

        It is kept for as long as the data holds the same tensors, unchanged.

        Raises:
            ValueError: If a modality has no hyperedges in the data.
        """
        found = [
            dst.removesuffix('_hyperedge')
            for src, relation, dst in data.edge_types
            if (src, relation) == ('item', 'member_of')
        ]
        names = sorted(found) if self.modalities is None else self.modalities
        missing = [name for name in names if name not in found]
        if missing or not names:
            raise ValueError(
                f"'i2i' needs item hyperedges of {missing or 'some modality'} (got "
                f'{found} in the data): give the data features and apply the transform '
                f'KNNHyperedges, or leave them out (i2i=false, in a recipe model.i2i)'
            )
        sizes = [data[f'{name}_hyperedge'].num_nodes for name in names]
        if self.item_log_weight and set(sizes) != {self.num_items}:
            raise ValueError(
                "'trainable_hyperedge_weight' expects as many hyperedges a modality "
                f'as items (got {sizes} for {self.num_items} items)'
            )
        stores = [data['item', 'member_of', f'{name}_hyperedge'] for name in names]
        sources = [store.edge_index for store in stores]
        return self._incidence.get(
            [*sources, *sizes],
            lambda: concat_incidence(sources, self.num_items, sizes),
        )


def _without_others(
    user: NodeViews, item: NodeViews, batch: PairBatch
) -> tuple[NodeViews, NodeViews, PairBatch]:
    """Users and items of a batch alone, by whose places it names them."""
    users, place = batch.user.unique(return_inverse=True)
    triples = torch.cat(
        [batch.pos_item.view(-1, 1), batch.neg_item.view(len(place), -1)], 1
    )
    items, places = triples.unique(return_inverse=True)
    return user.of(users), item.of(items), PairBatch(place, places[:, 0], places[:, 1:])
