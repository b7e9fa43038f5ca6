"""Mini-batches from lists, and a training loop without a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import PairBatch, SequenceBatch


def sequence_batch(
    histories: Sequence[Sequence[int]],
    target: Sequence[int] | None = None,
    neg_item: Tensor | None = None,
    user: Sequence[int] | None = None,
) -> SequenceBatch:
    row = [r for r, items in enumerate(histories) for _ in items]
    return SequenceBatch(
        user=torch.tensor(range(len(histories)) if user is None else user),
        item=torch.tensor([i for items in histories for i in items], dtype=torch.long),
        batch=torch.tensor(row, dtype=torch.long),
        target=None if target is None else torch.tensor(target),
        neg_item=neg_item,
    )


def pair_batch(
    user: Sequence[int],
    pos: Sequence[int],
    neg: Sequence[int] | Sequence[Sequence[int]],
) -> PairBatch:
    return PairBatch(torch.tensor(user), torch.tensor(pos), torch.tensor(neg))


def item_data(num_items: int) -> HeteroData:
    """Data that knows the number of items only."""
    data = HeteroData()
    data['item'].num_nodes = num_items
    return data


def train(
    model: torch.nn.Module,
    data: HeteroData,
    loader: Iterable[PairBatch] | Iterable[SequenceBatch],
    epochs: int,
    lr: float = 1e-2,
) -> float:
    """Plain loop; returns the mean loss of the last epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for epoch in range(epochs):
        if hasattr(loader, 'set_epoch'):
            loader.set_epoch(epoch)
        losses = []
        for batch in loader:
            loss = model.loss(data, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return sum(losses) / len(losses)
