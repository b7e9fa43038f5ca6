"""FREEDOM: a frozen item graph beside a pruned user-item graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce, scatter

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.nn.models.base import GraphRecommender, Vectors
from hellm_pyg.nn.models.lightgcn import BipartiteLightGCN
from hellm_pyg.nn.models.multimodal import (
    ItemFeatures,
    csr_matrices,
    neighbor_pairs,
    normalize_pairs,
    triple_loss,
)
from hellm_pyg.nn.spmm import spmm


class FREEDOM(GraphRecommender):
    r"""The model of `"A Tale of Two Graphs: Freezing and Denoising Graph
    Structures for Multimodal Recommendation"
    <https://arxiv.org/abs/2211.06924>`_.

    With the mean :math:`\mathbf{z}` of the LightGCN layers and the binary
    :math:`K`-nearest-neighbour matrices :math:`\mathbf{N}^m`, whose two sides
    are normalised by their row sums,

    .. math::
        \mathbf{e}_u &= \mathbf{z}_u, \qquad \mathbf{e}_i = \mathbf{z}_i +
        (\mathbf{S}^{L_I} \mathbf{Q})_i, \qquad \mathbf{S} = \sum_m \mu_m
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
        num_item_layers: Layers :math:`L_I` of the item graph.
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
        for name, value in (
            ('num_item_layers', num_item_layers),
            ('lambda_modality', lambda_modality),
        ):
            if value < 0:
                raise ValueError(f"'{name}' must not be negative (got {value})")
        self.features = ItemFeatures(num_items, feature_dims, trainable_features)
        names = list(self.features.dims)
        weights = modality_weights or {name: 1 / len(names) for name in names}
        if set(weights) != set(names) or min(weights.values()) <= 0:
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
        self.item_embedding = torch.nn.Embedding(num_items, embedding_dim)
        self.projection = torch.nn.ModuleDict(
            {m: torch.nn.Linear(dim, embedding_dim) for m, dim in feature_dims.items()}
        )
        # The seed stands for the graph, whose size only the data know.
        self.register_buffer('pruning_seed', torch.tensor(-1))
        self._item_graph: tuple[list[Tensor], Tensor, Tensor] | None = None
        self._pruned: tuple[Tensor, int, Tensor] | None = None
        self.reset_parameters()
