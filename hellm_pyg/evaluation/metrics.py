"""Ranks by comparison, and the metrics that are functions of a rank."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.metrics import (
    LinkPredAveragePopularity,
    LinkPredCoverage,
    LinkPredMetricCollection,
    LinkPredPersonalization,
)

from hellm_pyg.indices import check_indices


class NaNScoresError(ValueError, FloatingPointError):
    """A model gives scores that are NaN."""


def target_rank(
    scores: Tensor,
    target: Tensor,
    mask_row: Tensor | None = None,
    mask_col: Tensor | None = None,
) -> Tensor:
    r"""Rank of each row's target among the unmasked items, ties at their mean.

    .. math::
        r = 1 + |\{j : s_j > s_t\}| + \tfrac{1}{2} |\{j \neq t : s_j = s_t\}|

    Nothing is sorted, hence no order of indices decides a tie.

    Args:
        scores: Scores, float of shape :math:`[B, I]`; left untouched.
        target: Target item of each row, :math:`[B]`.
        mask_row: Row of each masked item, :math:`[M]`; may repeat.
        mask_col: Masked items, :math:`[M]`. A row's own target is never masked.

    Returns:
        Ranks from 1, float of shape :math:`[B]`.

    Raises:
        ValueError: If shapes do not fit, an index is out of range, or one of the two
            masks is missing.
        NaNScoresError: If a score is NaN.
    """
    num_rows, num_items = scores.shape
    if target.shape != (num_rows,):
        raise ValueError(
            f"'target' needs one item for each of {num_rows} rows (got "
            f'{list(target.shape)})'
        )
    check_indices('target', target, num_items, 'items')
    if mask_row is not None and mask_col is not None:
        check_indices('mask_row', mask_row, num_rows, 'rows')
        check_indices('mask_col', mask_col, num_items, 'items')
    shapes = [None if mask is None else mask.shape for mask in (mask_row, mask_col)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"'mask_row' and 'mask_col' need to be of the same shape (got {shapes[0]} "
            f'and {shapes[1]})'
        )
    if num_rows > 0 and bool(scores.amax().isnan()):  # the maximum keeps a NaN
        bad = int(scores.isnan().any(dim=1).sum())
        raise NaNScoresError(
            f"'scores' needs to be free of NaN (got NaN in {bad} of {num_rows} rows): "
            f'the model has diverged'
        )
    own = scores.gather(1, target.unsqueeze(1))
    # On the CPU, booleans are summed 30 times faster to int32 than to int64.
    above = (scores > own).sum(dim=1, dtype=torch.int32)
    tied = (scores == own).sum(dim=1, dtype=torch.int32) - 1
    if mask_row is not None and mask_col is not None:
        pair = (mask_row * num_items + mask_col).unique()
        row, col = pair // num_items, pair % num_items
        keep = col != target[row]
        row, col = row[keep], col[keep]
        score, threshold = scores[row, col], own[row, 0]
        above.index_add_(0, row, -(score > threshold).int())
        tied.index_add_(0, row, -(score == threshold).int())
    return 1 + above + tied / 2


def recall(rank: Tensor, k: int) -> Tensor:
    r"""Recall@K of one target, :math:`[r < K + 1]`; also its hit rate.

    Fewer than :math:`K` items lie ahead, a tied one counted as half; without ties it
    is :math:`[r \leq K]`.
    """
    return (rank < k + 1).double()


def ndcg(rank: Tensor, k: int) -> Tensor:
    r"""NDCG@K of one target, :math:`[r < K + 1] / \log_2(r + 1)`."""
    return recall(rank, k) / (rank.double() + 1).log2()


def mrr(rank: Tensor, k: int) -> Tensor:
    r"""MRR@K of one target, :math:`[r < K + 1] / r`."""
    return recall(rank, k) / rank.double()


METRICS = {'R': recall, 'N': ndcg, 'MRR': mrr}


def cutoff_of(metric: str) -> int:
    """The :math:`K` of a metric that is named ``'R@K'``, ``'N@K'`` or ``'MRR@K'``.

    Raises:
        ValueError: If it is named otherwise.
    """
    kind, _, cutoff = metric.partition('@')
    if kind not in METRICS or not re.fullmatch(r'[1-9][0-9]*', cutoff):
        raise ValueError(
            f"'metric' needs to be 'R@K', 'N@K' or 'MRR@K' (got {metric!r})"
        )
    return int(cutoff)


def summarize(rank: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Means of all metrics at all cut-offs: ``{'R@10': ..., 'N@10': ...}``."""
    return {
        f'{name}@{k}': float(metric(rank, k).mean())
        for k in ks
        for name, metric in METRICS.items()
    }


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The items with the highest scores; of equal scores the lower item comes first.

    Args:
        scores: Scores without NaN, float of shape :math:`[B, I]`.
        k: Number of items.

    Returns:
        Items and their scores, each of shape :math:`[B, k]`, best first.

    Raises:
        ValueError: If there are fewer than ``k`` items, or ``k`` is not positive.
    """
    if not 1 <= k <= scores.size(1):
        raise ValueError(
            f"'k' needs to lie between 1 and the number of items, {scores.size(1)} "
            f'(got {k})'
        )
    threshold = scores.topk(k, dim=1).values[:, -1:]
    above, tied = scores > threshold, scores == threshold
    room = k - above.sum(dim=1, keepdim=True, dtype=torch.int32)
    nth = tied.cumsum(dim=1, dtype=torch.int32)
    chosen = above | (tied & (nth <= room))
    item = chosen.nonzero()[:, 1].view(-1, k)
    score = scores.gather(1, item)
    order = score.argsort(dim=1, descending=True, stable=True)
    return item.gather(1, order), score.gather(1, order)


def beyond_accuracy(
    top: Tensor, ks: Sequence[int], popularity: Tensor
) -> dict[str, float]:
    """What recommended lists look like, by :mod:`torch_geometric.metrics`.

    Args:
        top: Recommended items of each user, best first, :math:`[n, K]`.
        ks: Cut-offs, at most :math:`K`.
        popularity: Number of interactions of each item, :math:`[I]`.

    Returns:
        ``'coverage@k'`` (share of the catalogue that is recommended to somebody),
        ``'personalization@k'`` (how much lists differ between users, over at most
        4,096 of them; 0 of a single one) and ``'popularity@k'`` (mean count of
        recommended items).
    """
    metrics = LinkPredMetricCollection(
        {
            f'{name}@{k}': metric
            for k in ks
            for name, metric in (
                ('coverage', LinkPredCoverage(k, popularity.numel())),
                ('personalization', LinkPredPersonalization(k)),
                ('popularity', LinkPredAveragePopularity(k, popularity)),
            )
        }
    ).to(top.device)
    for metric in metrics.values():
        # The lists are complete in every process: torchmetrics must not gather them.
        metric.distributed_available_fn = lambda: False
    metrics.update(top, top.new_empty(2, 0))
    # What a single user's list differs from is undefined: NaN.
    return {
        name: float(value.nan_to_num()) for name, value in metrics.compute().items()
    }
