"""Models whose scores are known, and what is best by them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data import SequenceBatch


class Table(torch.nn.Module):
    """Scores that are given, one row a user."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer('table', table)

    def encode(self, data: HeteroData) -> Tensor:
        return self.table

    def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        return encoded[batch.user]


class Reader(torch.nn.Module):
    """Scores made from the history and from the graph, and what it was given."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(
            torch.rand(num_items, num_items, generator=generator)
        )
        self.dropout = torch.nn.Dropout(0.5)
        self.read: dict[int, list[int]] = {}
        self.num_edges = 0

    def encode(self, data: HeteroData) -> Tensor:
        self.num_edges = data['user', 'interacts', 'item'].edge_index.size(1)
        assert not torch.is_grad_enabled()
        return self.dropout(self.weight)

    def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        for row, user in enumerate(batch.user.tolist()):
            self.read[user] = batch.item[batch.batch == row].tolist()
        out = encoded.new_zeros(batch.batch_size, encoded.size(0))
        return out.index_add(0, batch.batch, encoded[batch.item])


def best_unseen(data: HeteroData, user: int, scores: list[float], k: int) -> list[int]:
    """The best of 30 items that the user has no edge to."""
    edge_user, edge_item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    seen = edge_item[edge_user == user].tolist()
    left = [item for item in range(30) if item not in seen]
    return sorted(left, key=lambda item: -scores[item])[:k]
