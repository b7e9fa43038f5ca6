"""Ranks of held-out items in the lists of another library, under a protocol."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from benchmarks.peers.exchange import Split
from hellm_pyg.data.split import history_edges
from hellm_pyg.evaluation import Evaluation, Protocol, summarize


def to_split(data: HeteroData) -> Split:
    """What a peer may know of split interactions: everything but the test items."""
    train = history_edges(data, 'train')
    features = {
        name.removeprefix('x_'): x.numpy()
        for name, x in data['item'].items()
        if name.startswith('x_')
    }
    return Split(
        train.item.numpy(),
        train.ptr.numpy(),
        data['user'].val_item.numpy(),
        int(data['item'].num_nodes),
        features,
    )


def score_lists(
    data: HeteroData,
    lists: Tensor,
    split: Literal['val', 'test'],
    protocol: Protocol,
    ks: Sequence[int] = (10, 20),
) -> Evaluation:
    """Ranks every user's held-out item in a list, as ``evaluate`` does in scores.

    Masked items are dropped from a list; the rank of the target is its place in what
    is left. A target that is not in the list is a miss, as if it came last of all.
    Scores being unknown, ties stand in the order that the other library gave them.

    Args:
        data: Split interactions.
        lists: Items of all users, best first, of shape [U, K]; -1 after the end.
        split: ``'val'`` or ``'test'``.
        protocol: What is masked; its history is what the lists were made from.
        ks: Cut-offs.

    Raises:
        ValueError: If the lists do not fit the data, or repeat an item.
    """
    began = time.perf_counter()
    num_users, num_items = int(data['user'].num_nodes), int(data['item'].num_nodes)
    _check(lists, num_users, num_items)
    target = data['user'][f'{split}_item']
    user = (target >= 0).nonzero().view(-1)
    own, target = lists[user], target[user].unsqueeze(1)
    is_target = own == target
    counts = (own >= 0) & ~_masked(data, own, user, split, protocol.mask) | is_target
    place = (is_target * counts.cumsum(dim=1)).amax(dim=1)
    rank = place.where(place > 0, num_items).float()
    seconds = time.perf_counter() - began
    return Evaluation(summarize(rank, ks), rank, user, split, protocol, seconds)


def missed(result: Evaluation, num_items: int) -> float:
    """Share of the targets that no list holds."""
    return float((result.rank == num_items).float().mean())


def _check(lists: Tensor, num_users: int, num_items: int) -> None:
    if lists.dim() != 2 or lists.size(0) != num_users or lists.size(1) == 0:
        raise ValueError(
            f"'lists' needs a row for each of {num_users} users (got shape "
            f'{list(lists.shape)})'
        )
    if int(lists.max()) >= num_items or int(lists.min()) < -1:
        raise ValueError(
            f"'lists' needs items from 0 to {num_items - 1}, and -1 after the end (got "
            f'{int(lists.min())} to {int(lists.max())})'
        )
    ordered = lists.sort(dim=1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise ValueError("'lists' needs distinct items in a row (got repeated ones)")


def _masked(
    data: HeteroData, own: Tensor, user: Tensor, split: str, mask: str
) -> Tensor:
    """Which entries of the rows of some users are masked."""
    if mask == 'none':
        return torch.zeros_like(own, dtype=torch.bool)
    before = 'test' if split == 'test' and mask == 'seen' else 'train'
    known = history_edges(data, before, 'train+val')  # type: ignore[arg-type]
    num_items = int(data['item'].num_nodes)
    pairs = user.unsqueeze(1) * num_items + own
    return torch.isin(pairs, known.user * num_items + known.item)
