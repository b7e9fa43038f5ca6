"""The best items of each user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.data.loader import SequenceLoader
from hellm_pyg.data.split import fold_in, history_edges
from hellm_pyg.evaluation.new_items import NeighborScores
from hellm_pyg.evaluation.protocol import Recommender
from hellm_pyg.evaluation.scoring import (
    Precision,
    bar,
    best,
    device_of,
    history_length,
    inference,
    known_pairs,
    place,
    score_all,
)


def rank(
    model: Recommender,
    data: HeteroData,
    users: Tensor | Sequence[int] | SequenceBatch,
    k: int,
    exclude_seen: bool = True,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    r"""The ``k`` best items of each user, from everything that is known of them.

    Args:
        model: The model.
        data: Interactions, split or not; held-out items count as known.
        users: Users, in any order, or histories (``user`` -1 for those that the model
            was not trained on), which are scored in batches and read from their last
            ``max_len`` items, as those of users are.
        k: Number of items.
        exclude_seen: Leave out the items of the user's history (all of it, also what
            lies beyond ``max_len``).
        options: ``batch_size``, ``max_len``, ``batch_tokens`` and ``precision``, as
            of :func:`evaluate`, and ``allow_fewer``, ``candidates`` and
            ``neighbor_scores``, as of :func:`iter_rank`.

    Returns:
        Items and their scores, each of shape :math:`[B, k]`, or with
        ``allow_fewer`` :math:`[B, \min(k, I + N)]`, best first; of equal scores the
        lower item comes first. Both on the CPU.

    Raises:
        ValueError: If a user has fewer than ``k`` items left and may not, or scores
            are not finite.
    """
    parts = list(iter_rank(model, data, users, k, exclude_seen, **options))
    if not parts:
        k = min(k, _num_ranked(data, options.get('neighbor_scores')))
        return torch.empty(0, k, dtype=torch.long), torch.empty(0, k)
    _, item, score = (torch.cat(part) for part in zip(*parts, strict=True))
    return item, score


def iter_rank(
    model: Recommender,
    data: HeteroData,
    users: Tensor | Sequence[int] | SequenceBatch | None,
    k: int,
    exclude_seen: bool = True,
    *,
    batch_size: int = 1024,
    max_len: int | None = None,
    batch_tokens: int | None = None,
    precision: Precision = 'fp32',
    candidates: Tensor | Sequence[int] | None = None,
    neighbor_scores: NeighborScores | None = None,
    allow_fewer: bool = False,
    progress: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    r"""Streams what :func:`rank` returns, batch by batch.

    Args:
        model: The model; encodes the data once.
        data: Interactions.
        users: As of :func:`rank`; :obj:`None` for all users.
        k: Number of items.
        exclude_seen: Leave out known items.
        batch_size: Users scored at once.
        max_len: Number of last items of a history that the model may read;
            :obj:`None` for the model's own ``max_len``, or 50 if it has none.
        batch_tokens: Bound on users times longest history instead of ``batch_size``.
        precision: ``'bf16'`` runs the model under autocast.
        candidates: Items that may be in a list, such as those in stock, in any order;
            :obj:`None` for all.
        neighbor_scores: What scores :math:`N` items that are not in the data, which are
            ranked, too, and may stand in histories and among the candidates; their
            indices are those behind the data's.
        allow_fewer: Whether the list of a user with fewer than ``k`` items left ends
            in items -1 of score :math:`-\infty`, and ``k`` may be above the number
            of items :math:`I + N`; otherwise that is an error.
        progress: Show a progress bar on a terminal.

    Yields:
        Users :math:`[B]`, items and scores :math:`[B, \min(k, I + N)]`, on the CPU.

    Raises:
        ValueError: As of :func:`rank`, or if ``candidates`` are no items, or
            ``neighbor_scores`` are of other known items.
    """
    num_items = int(data['item'].num_nodes)
    num_ranked = _num_ranked(data, neighbor_scores)
    if isinstance(k, bool) or not isinstance(k, SupportsIndex):
        raise ValueError(f"'k' needs to be a whole number (got {k!r})")
    if allow_fewer:
        k = min(k, num_ranked)
    if not 1 <= k <= num_ranked:
        raise ValueError(f"'k' needs to be from 1 to {num_ranked} items (got {k})")
    known = history_edges(data, 'all').cpu()
    device = device_of(model)
    left_out = None
    if candidates is not None:
        left_out = ~_allowed(candidates, num_ranked).to(device)
    max_len = history_length([model], max_len)
    batches: Any
    if isinstance(users, SequenceBatch):
        rows = batch_size if batch_tokens is None else batch_tokens // max_len
        batches = list(_parts(users, max(rows, 1)))
    else:
        batches = SequenceLoader(
            data,
            'all',
            batch_size,
            max_len,
            bucket=False,
            users=users,
            batch_tokens=batch_tokens,
        )
    with inference(model, precision):
        known_data = fold_in(data, 'all') if 'val_item' in data['user'] else data
        encoded = model.encode(place(known_data, device))
    for batch in bar(batches, 'rank', progress):
        row = col = torch.empty(0, dtype=torch.long)
        if exclude_seen:
            row, col = known_pairs(known, batch.user.cpu())
            row = torch.cat([row, batch.batch.cpu()])
            col = torch.cat([col, batch.item.cpu()])
        moved = _last(batch, max_len).to(device)
        if neighbor_scores is not None:
            moved = neighbor_scores.read(moved)
        row, col = row.to(device), col.to(device)
        # Left before every yield: the caller's code is not part of inference.
        with inference(model, precision):
            scores = score_all(model, encoded, moved, num_items)
            if not bool(scores.isfinite().all()):
                raise ValueError(
                    "'scores' needs to be finite (got NaN or infinite scores): the "
                    'model has diverged'
                )
            if neighbor_scores is not None:
                scores = neighbor_scores(scores)
            if left_out is not None:
                scores = scores.masked_fill(left_out, float('-inf'))
            item, score = best(scores, row, col, k, moved.user, allow_fewer)
        yield batch.user.cpu(), item.cpu(), score.cpu()


def _num_ranked(data: HeteroData, neighbor_scores: NeighborScores | None) -> int:
    """Number of items that there are to choose from."""
    known = int(data['item'].num_nodes)
    if neighbor_scores is None:
        return known
    if neighbor_scores.num_items != known:
        raise ValueError(
            f"'neighbor_scores' need neighbours among the {known} items of the data "
            f'(got {neighbor_scores.num_items} known items)'
        )
    return known + neighbor_scores.num_new


def _allowed(candidates: Tensor | Sequence[int], num_items: int) -> Tensor:
    """Which items are candidates, bool of shape [I]."""
    if isinstance(candidates, Tensor):
        candidates = candidates.cpu()
    try:
        array = np.asarray(
            candidates if hasattr(candidates, '__array__') else list(candidates)
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"'candidates' needs to be a vector of item indices (got {candidates!r})"
        ) from error
    if array.size == 0:
        raise ValueError("'candidates' needs at least one item (got none)")
    if array.dtype.kind not in 'iu' or array.ndim != 1:
        raise ValueError(
            f"'candidates' needs to be a vector of item indices (got {array.dtype} of "
            f'shape {list(array.shape)})'
        )
    item = torch.from_numpy(array.astype(np.int64))
    low, high = int(item.min()), int(item.max())
    if low < 0 or high >= num_items:
        raise ValueError(
            f"'candidates' needs items from 0 to {num_items - 1} (got {low} to {high})"
        )
    mask = torch.zeros(num_items, dtype=torch.bool)
    mask[item] = True
    return mask


def _parts(batch: SequenceBatch, size: int) -> Iterator[SequenceBatch]:
    """Histories of so many rows at a time."""
    for first in range(0, batch.batch_size, size):
        own = (batch.batch >= first) & (batch.batch < first + size)
        user = batch.user[first : first + size]
        yield SequenceBatch(user, batch.item[own], batch.batch[own] - first)


def _last(batch: SequenceBatch, max_len: int) -> SequenceBatch:
    """The last items of each history."""
    keep = batch.position >= (batch.length - max_len)[batch.batch]
    return replace(batch, item=batch.item[keep], batch=batch.batch[keep])
