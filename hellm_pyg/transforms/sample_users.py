"""Some of the users, for experiments that would take too long on all of them."""

from __future__ import annotations

import torch
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform


@functional_transform('sample_users')
class SampleUsers(BaseTransform):
    r"""Draws users whose sequences are trained on and whose targets are ranked
    (functional name: :obj:`sample_users`).

    Writes ``sample_mask`` of the users, :math:`[U]`, which
    :class:`~hellm_pyg.data.SequenceLoader` reads. Nothing else changes: catalogue,
    graph and histories are those of all users. A smaller share is part of a larger
    one.

    Args:
        share: Share of the users, above 0 and at most 1; one is drawn at least.
        seed: Seed of the draw. (default: :obj:`0`)

    Raises:
        ValueError: If the share is out of range.
    """

    def __init__(self, share: float, seed: int = 0) -> None:
        if not 0 < share <= 1:
            raise ValueError(
                f"'share' needs to be above 0 and at most 1 (got {share}); leave it "
                f'out for all users'
            )
        self.share = share
        self.seed = seed

    def forward(self, data: HeteroData) -> HeteroData:
        """Marks the users."""
        num_users = int(data['user'].num_nodes)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(num_users, generator=generator)
        mask = torch.zeros(num_users, dtype=torch.bool)
        mask[order[: max(1, round(self.share * num_users))]] = True
        data['user'].sample_mask = mask
        return data

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.share})'
