"""SLMRec: contrast between the modalities of an item."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.nn.directions import directions
from hellm_pyg.nn.models.base import GraphRecommender, Vectors, check_not_negative
from hellm_pyg.nn.models.multimodal import ProjectedFeatures
from hellm_pyg.nn.spmm import spmm


class SLMRec(GraphRecommender):
    r"""The model of `"Self-Supervised Learning for Multimedia Recommendation"
    <https://ieeexplore.ieee.org/document/9811387>`_ with its fine and coarse
    contrast of modalities.

    LightGCN propagates one table of users with, in turn, a table of items and
    the items' features :math:`\mathbf{W}_m \frac{\mathbf{f}^m}
    {\|\mathbf{f}^m\|} + \mathbf{b}_m` of each modality. Of the means
    :math:`\mathbf{z}^0, \mathbf{z}^1, \ldots, \mathbf{z}^M` of the layers,

    .. math::
        \mathbf{e}_u &= \mathbf{W}_U [\mathbf{z}^0_u \| \ldots \|
        \mathbf{z}^M_u] + \mathbf{b}_U, \qquad
        \mathbf{e}_i = \mathbf{W}_I [\mathbf{z}^0_i \| \ldots \|
        \mathbf{z}^M_i] + \mathbf{b}_I

        \mathcal{L} &= \mathrm{CE}\left( \frac{1}{\tau} \cos(\mathbf{e}_u,
        \mathbf{e}_i) \right) + \alpha \left[ \mathrm{CE}\left( \frac{1}{t}
        \mathbf{x}^{\top} \mathbf{W}_1 \mathbf{z}^1_i \right) + \sum_{m=2}^{M}
        \mathrm{CE}\left( \frac{1}{t} (\mathbf{V}^{\prime}_m \mathbf{V}_m
        \mathbf{x})^{\top} \mathbf{W}_m \mathbf{z}^m_i \right) \right],
        \qquad \mathbf{x} = \mathbf{W}_0 \mathbf{z}^0_i.

    CE is the cross-entropy within the batch, each pair's own partner being
    right. Modalities are taken by name, so that of ``image`` and ``text`` the
    first is contrasted in the fine space of :math:`D` channels and the second
    in a coarse one of :math:`D / 2`. Negative items of the batch are not read.

    The features of an item without a modality are :math:`\mathbf{b}_m`, the
    same for all of them; such items neither ask nor answer in its contrast.

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        feature_dims: Width of each modality.
        embedding_dim: Width :math:`D`, an even number.
        num_layers: Layers of LightGCN.
        temperature: Temperature :math:`\tau` of the main loss.
        ssl_temperature: Temperature :math:`t` of the contrast of modalities.
        ssl_alpha: Weight :math:`\alpha` of the contrast of modalities.
        ranking: Whether items are ranked by ``'dot'`` products, as published,
            or by the ``'cosine'`` that is trained.
        mask_duplicates: Whether pairs of the batch with the same user or the
            same item are no negatives of each other.

    Raises:
        ValueError: If an argument is out of range, or the data does not fit.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        feature_dims: dict[str, int],
        embedding_dim: int = 64,
        num_layers: int = 3,
        temperature: float = 0.2,
        ssl_temperature: float = 0.2,
        ssl_alpha: float = 0.05,
        ranking: Literal['dot', 'cosine'] = 'dot',
        mask_duplicates: bool = True,
    ) -> None:
        super().__init__(num_users, num_items)
        for name, value in (
            ('temperature', temperature),
            ('ssl_temperature', ssl_temperature),
        ):
            if not 0 < value < math.inf:
                raise ValueError(f"'{name}' must be positive (got {value})")
        check_not_negative(num_layers=num_layers, ssl_alpha=ssl_alpha)
        if embedding_dim < 2 or embedding_dim % 2:
            raise ValueError(
                f"'embedding_dim' must be even and positive (got {embedding_dim})"
            )
        if ranking not in ('dot', 'cosine'):
            raise ValueError(f"'ranking' must be 'dot' or 'cosine' (got {ranking!r})")
        self.temperature = temperature
        self.ssl_temperature = ssl_temperature
        self.ssl_alpha = ssl_alpha
        self.ranking = ranking
        self.mask_duplicates = mask_duplicates
        self.num_layers = num_layers
        self.user_embedding = torch.nn.Embedding(num_users, embedding_dim)
        self.item_embedding = torch.nn.Embedding(num_items, embedding_dim)
        self.features = ProjectedFeatures(num_items, feature_dims, embedding_dim)
        first, *others = self.features.dims
        fused, half = (1 + len(feature_dims)) * embedding_dim, embedding_dim // 2
        self.user_fusion = torch.nn.Linear(fused, embedding_dim)
        self.item_fusion = torch.nn.Linear(fused, embedding_dim)

        def linear(channels: int) -> torch.nn.Linear:
            return torch.nn.Linear(embedding_dim, channels, bias=False)

        self.anchor = linear(embedding_dim)  # W_0
        self.partner = torch.nn.ModuleDict({first: linear(embedding_dim)})
        self.coarse = torch.nn.ModuleDict()  # V' V
        for name in others:
            self.partner[name] = linear(half)
            self.coarse[name] = torch.nn.Sequential(linear(embedding_dim), linear(half))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws tables and layers anew."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_uniform_(parameter)
            else:
                torch.nn.init.zeros_(parameter)

    def views(self, data: HeteroData) -> list[Vectors]:
        """Returns users [U, D] and items [I, D] of each graph, the ids' first."""
        self.check_size(data)
        if 'ui_adj' not in data:
            raise ValueError(
                "The data has no 'ui_adj' (got the stores "
                f'{data.node_types}); apply the transform UserItemGraph first'
            )
        user, items = self.user_embedding.weight, [self.item_embedding.weight]
        for name in self.features.dims:
            items.append(self.features.project(data, name, normalize=True))
        # One product of the width of all graphs serves them together.
        x = torch.cat([user.repeat(1, len(items)), torch.cat(items, dim=1)])
        total = x
        for _ in range(self.num_layers):
            x = spmm(data.ui_adj, data.ui_adj, x)
            total = total + x
        sides = (total / (self.num_layers + 1)).split([self.num_users, self.num_items])
        channels = user.size(1)
        return list(zip(*(z.split(channels, dim=1) for z in sides), strict=True))

    def encode(self, data: HeteroData) -> Vectors:
        """Returns all user vectors [U, D] and all item vectors [I, D]."""
        user, item = self._fuse(self.views(data))
        if self.ranking == 'cosine':
            return directions(user), directions(item)
        return user, item

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        """Returns the mean loss of the pairs, a scalar."""
        batch.check(self.num_users, self.num_items)
        rows = [(u[batch.user], i[batch.pos_item]) for u, i in self.views(data)]
        user, item = self._fuse(rows)
        same_item = batch.pos_item.unsqueeze(1) == batch.pos_item
        same = same_item | (batch.user.unsqueeze(1) == batch.user)
        scores = directions(user) @ directions(item).t()
        known = torch.ones_like(batch.user, dtype=torch.bool)
        loss = self._cross_entropy(scores / self.temperature, same, known)
        if self.ssl_alpha == 0:
            return loss
        anchor = self.anchor(rows[0][1])
        for name, (_, view) in zip(self.features.dims, rows[1:], strict=True):
            left = self.coarse[name](anchor) if name in self.coarse else anchor
            scores = left @ self.partner[name](view).t() / self.ssl_temperature
            known = self.features.present(data, name)[batch.pos_item]
            term = self._cross_entropy(scores, same_item, known)
            loss = loss + self.ssl_alpha * term
        return loss

    def _fuse(self, views: list[Vectors]) -> Vectors:
        users, items = zip(*views, strict=True)
        return (
            self.user_fusion(torch.cat(users, dim=1)),
            self.item_fusion(torch.cat(items, dim=1)),
        )

    def _cross_entropy(self, scores: Tensor, same: Tensor, known: Tensor) -> Tensor:
        """Sum over known rows of the diagonal's cross-entropy, by all rows."""
        own = torch.arange(len(scores), device=scores.device)
        hidden = ~known.expand_as(scores)
        if self.mask_duplicates:
            hidden = hidden | same
        hidden = hidden & (own.unsqueeze(1) != own)
        terms = F.cross_entropy(
            scores.masked_fill(hidden, -torch.inf), own, reduction='none'
        )
        return terms.where(known, 0.0).mean()

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'{self.features.dims}, {self.user_embedding.embedding_dim}, '
            f'num_layers={self.num_layers})'
        )
