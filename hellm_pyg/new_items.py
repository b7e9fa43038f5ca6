"""Items that came after the training, and the known ones that are like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.features import missing_rows, present_rows
from hellm_pyg.datasets.ids import Id
from hellm_pyg.evaluation import NeighborScores
from hellm_pyg.transforms.nearest import Index, nearest


@dataclass(frozen=True)
class NewItems:
    r"""Items that a model does not know, by what they look like.

    Each gets the mean of the scores of the ``k`` known items that are nearest to it in
    each modality that it has, weighted by their cosine similarities, see
    :class:`~hellm_pyg.evaluation.NeighborScores`. So every model can recommend them,
    as it is.

    Args:
        ids: Original ids, of length :math:`N`.
        features: Modality to features of the items by the encoder of the known ones,
            float of shape :math:`[N, F_m]`; missing rows are all NaN or all zero.
        titles: Titles, of length :math:`N`.
        k: Neighbours in a modality.

    Raises:
        ValueError: If lengths differ, ``k`` is below 1, or an item has no features.
    """

    ids: Sequence[Id]
    features: Mapping[str, Tensor] = field(repr=False)
    titles: Sequence[str] | None = field(default=None, repr=False)
    k: int = 10

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"'k' needs to be at least 1 (got {self.k})")
        if self.titles is not None and len(self.titles) != len(self.ids):
            raise ValueError(
                f"'titles' needs one entry an item (got {len(self.titles)} titles for "
                f'{len(self.ids)} items)'
            )
        for name, x in self.features.items():
            if x.dim() != 2 or x.size(0) != len(self.ids):
                raise ValueError(
                    f"'features' of '{name}' needs a row for each item, "
                    f'[{len(self.ids)}, F] (got {list(x.shape)})'
                )
        bare = (~self.described).nonzero().view(-1).tolist()
        if bare:
            raise ValueError(
                f"'features' needs features of each item in one modality or more (got "
                f'none of {len(bare)} items, the first of them {self.ids[bare[0]]!r})'
            )

    @property
    def described(self) -> Tensor:
        """Which items have features, bool of shape :math:`[N]`."""
        out = torch.zeros(len(self.ids), dtype=torch.bool)
        for x in self.features.values():
            out |= ~missing_rows(x.cpu())
        return out

    def scores(self, data: HeteroData, index: Index = 'flat') -> NeighborScores:
        """Finds the neighbours among the items of data.

        Args:
            data: What the model was trained on, with features ``x_<modality>`` of the
                items.
            index: ``'flat'`` is exact, ``'ivf'`` is for large catalogues.

        Raises:
            ValueError: If the data have no such modality, its features are of another
                width, or a row is neither finite nor missing as a whole.
            ImportError: If faiss is not installed.
        """
        found = [self._neighbors(name, data, index) for name in self.features]
        empty = torch.empty(len(self.ids), 1)
        neighbor = torch.cat([n for n, _ in found] or [empty.long()], dim=1)
        weight = torch.cat([w for _, w in found] or [empty], dim=1)
        # The nearest first: it stands for the item in histories.
        order = weight.argsort(dim=1, descending=True, stable=True)
        return NeighborScores(
            neighbor.gather(1, order),
            weight.gather(1, order),
            int(data['item'].num_nodes),
        )

    def _neighbors(
        self, name: str, data: HeteroData, index: Index
    ) -> tuple[Tensor, Tensor]:
        """Neighbours in a modality, and their weights: zero for items without it."""
        known, own = data['item'].get(f'x_{name}'), HeteroData()
        if known is None:
            have = [key[2:] for key in data['item'].to_dict() if key.startswith('x_')]
            raise ValueError(
                f"'features' needs modalities that the known items have (got '{name}', "
                f'they have {have})'
            )
        own['item'][f'x_{name}'] = self.features[name].cpu().float()
        own['item'].num_nodes = len(self.ids)
        here = present_rows(own, name)
        there = present_rows(data, name).cpu().nonzero().view(-1)
        x = own['item'][f'x_{name}'][here]
        if x.size(1) != known.size(1):
            raise ValueError(
                f"'features' of '{name}' need the width of those of the known items, "
                f'{known.size(1)} (got {x.size(1)}): encode them by the same encoder'
            )
        k = min(self.k, there.numel())
        neighbor = torch.zeros(len(self.ids), k, dtype=torch.long)
        weight = torch.zeros(len(self.ids), k)
        if x.size(0) > 0:
            points = F.normalize(known[there.to(known.device)].cpu().float(), dim=-1)
            position, cosine = nearest(points, F.normalize(x, dim=-1), k, index)
            neighbor[here] = there[position]
            # What is like nothing has equal weights instead of none.
            weight[here] = cosine.clamp(min=1e-6)
        return neighbor, weight
