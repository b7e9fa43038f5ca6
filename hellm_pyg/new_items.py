"""Items that came after the training, and the known ones that are like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.features import missing_rows, present_rows
from hellm_pyg.datasets.ids import Id
from hellm_pyg.evaluation import NeighborScores
from hellm_pyg.transforms.nearest import nearest, unit_rows


@dataclass(frozen=True)
class NewItems:
    r"""Items that a model does not know, by what they look like.

    With the known items :math:`\mathcal{N}_m(n)` that are the ``k`` nearest to a new
    item :math:`n` in modality :math:`m`, by the cosine :math:`c^m_{nj}` of their
    features, and the modalities :math:`M_n` that it has, its score is the mean

    .. math::

        s_u(n) = \frac{\sum_j w_{nj} \, s_u(j)}{\sum_j w_{nj}}, \qquad
        w_{nj} = \sum_{m \in M_n} [j \in \mathcal{N}_m(n)] \, \max(c^m_{nj}, 10^{-6})

    of theirs, see :class:`~hellm_pyg.evaluation.NeighborScores`. So every model can
    recommend new items, as it is.

    Args:
        ids: Original ids, of length :math:`N`.
        features: Modality to features of the items by the encoder of the known ones,
            float of shape :math:`[N, F_m]`; missing rows are all NaN or all zero.
        titles: Titles, of length :math:`N`.
        k: Neighbours in a modality. A mean of several scores is less extreme than the
            score of one item: it keeps new items out of lists of all items
            (``benchmarks/results/new_items``).

    Raises:
        ValueError: If lengths differ, ``k`` is no whole number from 1 on, an item has
            no features, or some that are not finite.
    """

    ids: Sequence[Id]
    features: Mapping[str, Tensor] = field(repr=False)
    titles: Sequence[str] | None = field(default=None, repr=False)
    k: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, SupportsIndex):
            raise ValueError(f"'k' needs to be a whole number (got {self.k!r})")
        if self.k < 1:
            raise ValueError(f"'k' needs to be at least 1 (got {self.k})")
        if self.titles is not None and len(self.titles) != len(self.ids):
            raise ValueError(
                f"'titles' needs one entry an item (got {len(self.titles)} titles for "
                f'{len(self.ids)} items)'
            )
        bare = torch.ones(len(self.ids), dtype=torch.bool)
        for name, x in self.features.items():
            bare &= ~self._present(name, x)
        if bool(bare.any()):
            first = self.ids[int(bare.int().argmax())]
            raise ValueError(
                f"'features' needs features of each item in one modality or more (got "
                f'none of {int(bare.sum())} items, the first of them {first!r})'
            )

    def _present(self, name: str, x: Tensor) -> Tensor:
        """Which items have a modality."""
        if not isinstance(x, Tensor) or x.dim() != 2 or x.size(0) != len(self.ids):
            shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"'features' of '{name}' needs a tensor with a row for each item, "
                f'[{len(self.ids)}, F] (got {shape})'
            )
        missing = missing_rows(x).cpu()
        broken = ~x.isfinite().all(dim=1).cpu() & ~missing
        if bool(broken.any()):
            first = self.ids[int(broken.int().argmax())]
            raise ValueError(
                f"'features' of '{name}' needs rows that are finite, or missing as a "
                f'whole as NaN (got NaN or Inf for {first!r})'
            )
        return ~missing

    def scores(self, data: HeteroData) -> NeighborScores:
        """Finds the neighbours among the items of data.

        Args:
            data: What the model was trained on, with features ``x_<modality>`` of the
                items.

        Raises:
            ValueError: If the data have no such modality, its features are of another
                width, or no known item has any of those that an item has.
            ImportError: If faiss is not installed.
        """
        none = torch.empty(len(self.ids), 0)
        found = [self._neighbors(name, data) for name in self.features]
        neighbor = torch.cat([none.long(), *(n for n, _ in found)], dim=1)
        weight = torch.cat([none, *(w for _, w in found)], dim=1)
        alone = (weight == 0).all(dim=1)
        if bool(alone.any()):
            raise ValueError(
                f"'features' needs modalities that known items have, too (got none for "
                f'{self.ids[int(alone.int().argmax())]!r})'
            )
        # The nearest first: it stands for the item in histories.
        order = weight.argsort(dim=1, descending=True, stable=True)
        return NeighborScores(
            neighbor.gather(1, order),
            weight.gather(1, order),
            int(data['item'].num_nodes),
        )

    def _neighbors(self, name: str, data: HeteroData) -> tuple[Tensor, Tensor]:
        """Neighbours in a modality, and their weights: zero for items without it."""
        known, x = data['item'].get(f'x_{name}'), self.features[name]
        if known is None:
            have = [key[2:] for key in data['item'].to_dict() if key.startswith('x_')]
            raise ValueError(
                f"'features' needs modalities that the known items have (got '{name}', "
                f'they have {have})'
            )
        if x.size(1) != known.size(1):
            raise ValueError(
                f"'features' of '{name}' need the width of those of the known items, "
                f'{known.size(1)} (got {x.size(1)}): encode them by the same encoder'
            )
        here, there = self._present(name, x), present_rows(data, name).cpu()
        k = min(self.k, int(there.sum()))
        neighbor = torch.zeros(len(self.ids), k, dtype=torch.long)
        weight = torch.zeros(len(self.ids), k)
        if k > 0 and bool(here.any()):
            points, queries = unit_rows(known.cpu()[there]), unit_rows(x.cpu()[here])
            position, cosine = nearest(points, queries, k)
            neighbor[here] = there.nonzero().view(-1)[position]
            # What is like nothing has equal weights instead of none.
            weight[here] = cosine.clamp(min=1e-6)
        return neighbor, weight
