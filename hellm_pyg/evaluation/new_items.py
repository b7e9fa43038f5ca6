"""Scores of items that a model does not know, from those of items like them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.indices import check_indices


class NeighborScores(torch.nn.Module):
    r"""Scores new items by those of their neighbours among the known ones.

    A new item :math:`n` with the known neighbours :math:`\mathcal{N}(n)` gets

    .. math::

        s_u(n) = \frac{\sum_{j \in \mathcal{N}(n)} w_{nj} \, s_u(j)}
        {\sum_{j \in \mathcal{N}(n)} w_{nj}}

    of every user :math:`u`. With the similarity of the items' features as
    :math:`w_{nj}`, and scores that are linear in an embedding of the item, this is
    the *kNN* mapping from attributes to factors of `"Learning Attribute-to-Feature
    Mappings for Cold-Start Recommendations" <https://doi.org/10.1109/ICDM.2010.129>`_;
    it needs no more of a model than its scores.

    New items have the indices behind those of the :math:`I` known ones. In a history
    the nearest neighbour stands for them.

    Args:
        neighbor (Tensor): Neighbours of each new item, the nearest first, int64 of
            shape :math:`[N, k]`.
        weight (Tensor): Their weights :math:`w_{nj}`, float of the same shape.
        num_items (int): Number of known items :math:`I`.

    Raises:
        ValueError: If shapes do not fit, a neighbour is no known item, or weights are
            negative, not finite, or all zero for an item.
    """

    neighbor: Tensor
    weight: Tensor

    def __init__(self, neighbor: Tensor, weight: Tensor, num_items: int) -> None:
        super().__init__()
        if neighbor.dim() != 2:
            raise ValueError(
                f"'neighbor' needs the shape [N, k] (got {list(neighbor.shape)})"
            )
        check_indices('neighbor', neighbor, num_items, 'known items')
        if weight.shape != neighbor.shape:
            raise ValueError(
                f"'weight' needs a weight for each neighbour, {list(neighbor.shape)} "
                f'(got {list(weight.shape)})'
            )
        total = weight.sum(dim=1, keepdim=True)
        fit = (weight >= 0).all(dim=1) & total.isfinite()[:, 0] & (total[:, 0] > 0)
        if not bool(fit.all()):
            wrong = int((~fit).int().argmax())
            raise ValueError(
                "'weight' needs finite weights from 0 on, not all zero for an item "
                f'(got {weight[wrong].tolist()} for item {wrong})'
            )
        self.num_items = num_items
        self.register_buffer('neighbor', neighbor, persistent=False)
        self.register_buffer('weight', weight / total, persistent=False)

    @property
    def num_new(self) -> int:
        """Number of new items :math:`N`."""
        return self.neighbor.size(0)

    def forward(self, scores: Tensor) -> Tensor:
        """Returns the scores of all items, the new ones last.

        Args:
            scores: Scores of the known items, float of shape :math:`[B, I]`.

        Returns:
            :math:`[B, I + N]`.
        """
        neighbor, weight = self.neighbor.to(scores.device), self.weight.to(scores)
        new = scores.new_zeros(scores.size(0), self.num_new)
        for column in range(neighbor.size(1)):  # one [B, N] at a time
            new += scores[:, neighbor[:, column]] * weight[:, column]
        return torch.cat([scores, new], dim=1)

    def read(self, batch: SequenceBatch) -> SequenceBatch:
        """Returns histories as a model can read them, of known items alone.

        Args:
            batch: Histories of known and new items.

        Raises:
            ValueError: If an item is neither.
        """
        check_indices('batch.item', batch.item, self.num_items + self.num_new, 'items')
        known = torch.arange(self.num_items, device=batch.item.device)
        nearest = self.neighbor[:, :1].view(-1).to(batch.item.device)
        return replace(batch, item=torch.cat([known, nearest])[batch.item])

    def extra_repr(self) -> str:
        """The numbers of items."""
        return f'{self.num_items}, new={self.num_new}'
