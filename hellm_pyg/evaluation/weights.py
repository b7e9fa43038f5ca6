"""The weights of a sum of models, chosen on validation."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.evaluation.contest import contest
from hellm_pyg.evaluation.metrics import METRICS, cutoff_of, summarize, target_rank
from hellm_pyg.evaluation.protocol import HEADLINE, Evaluation, Protocol, Recommender
from hellm_pyg.evaluation.ranking import held_out
from hellm_pyg.evaluation.scoring import Precision, device_of
from hellm_pyg.nn.standardize import standardize

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
MAX_COMBINATIONS = 4096

logger = logging.getLogger(__name__)


class Choice(NamedTuple):
    """The chosen weights and what they were chosen among.

    Args:
        weights: Weight of each member; that of the first is 1.
        chosen: The validation of the sum with these weights; the rank of a target that
            no weights bring among those of the largest cut-off is infinite.
        alone: The validation of each member by itself.
        tried: The metric of every combination of weights.
    """

    weights: dict[str, float]
    chosen: Evaluation
    alone: dict[str, Evaluation]
    tried: dict[tuple[float, ...], float]


def choose_weights(
    members: Mapping[str, Recommender],
    data: HeteroData,
    grid: Sequence[float] = GRID,
    metric: str = 'N@10',
    ks: Sequence[int] = (10, 20),
    protocol: Protocol = HEADLINE,
    batch_size: int = 1024,
    *,
    max_len: int | None = None,
    precision: Precision = 'fp32',
    shard: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Choice:
    r"""Weights of an :class:`~hellm_pyg.nn.models.Ensemble`, by grid search.

    The first member has weight 1, the others every combination of the grid. All are
    measured in one pass over the validation users, in which each member scores a
    batch once: no more than the scores of a batch by each member are held, beside
    one rank a combination and user. What no weights can change is left out of the
    sums (:func:`~hellm_pyg.evaluation.contest.contest`). Of equal combinations the one
    with the fewest weights above zero is chosen, then the one with the smallest sum. A
    warning says if a member by itself is better than all of them.

    Args:
        members: Trained recommenders on one device; the first is the strongest.
        data: Split interactions.
        grid: Weights of each member but the first.
        metric: What is maximised: ``'R@K'``, ``'N@K'`` or ``'MRR@K'``.
        ks: Cut-offs of the reported metrics.
        protocol: What is read and what is ranked.
        batch_size: Users scored at once.
        max_len: Number of last items of a history that members may read;
            :obj:`None` for the most that one of them reads.
        precision: ``'bf16'`` runs the members under autocast.
        shard: Rank and number of the processes that share the users, as of
            :func:`~hellm_pyg.evaluation.evaluate`.
        progress: Show a progress bar on a terminal.

    Raises:
        ValueError: If there are no members, the grid is empty, has numbers that are
            negative or not finite, or too many combinations, the metric is unknown,
            scores are not finite, and as of :func:`~hellm_pyg.evaluation.evaluate`.
    """
    began = time.perf_counter()
    cutoff = cutoff_of(metric)
    if not ks or min(ks) < 1:
        raise ValueError(f"'ks' needs to hold positive cut-offs (got {tuple(ks)})")
    ks = sorted({*ks, cutoff})
    combinations = _combinations(members, grid)
    models = list(members.values())
    device = device_of(models[0])
    num_users, number = int(data['user'].num_nodes), len(combinations)
    ranks = torch.zeros(number + len(models), num_users, device=device)
    for user, target, ((row, col),), scores in held_out(
        models,
        data,
        'val',
        [protocol],
        batch_size,
        max_len=max_len,
        precision=precision,
        shard=shard,
        progress=progress,
    ):
        parts = [  # first, as this names the member whose scores are not finite
            standardize(own, name) for name, own in zip(members, scores, strict=True)
        ]
        for index in range(len(scores)):
            ranks[number + index, user] = target_rank(scores[index], target, row, col)
        scores.clear()  # the list is that of the generator, too
        found = contest(parts, target, row, col, max(ks))
        del parts
        ranks[:number, user] = torch.inf
        contested, grids = user[found.row], [sorted(set(grid))] * (len(models) - 1)
        for index, total in enumerate(_sums(found.scores, grids)):
            ranks[index, contested] = found.rank(total)
        del found, total  # before the next batch is scored
    if shard[1] > 1:  # every user is in one share and zero in the others
        torch.distributed.all_reduce(ranks)
    user = ranks[-1].nonzero().view(-1)
    ranks = ranks[:, user]
    kind = METRICS[metric.partition('@')[0]]
    values = [float(kind(rank, cutoff).mean()) for rank in ranks]
    tried, alone = values[:number], dict(zip(members, values[number:], strict=True))
    chosen = max(range(number), key=lambda i: (tried[i], *_size(combinations[i])))
    _compare(metric, tried[chosen], alone, found=0 in grid)
    seconds = time.perf_counter() - began
    results = [
        Evaluation(
            summarize(rank, ks), rank.cpu(), user.cpu(), 'val', protocol, seconds
        )
        for rank in (ranks[chosen], *ranks[number:])
    ]
    return Choice(
        dict(zip(members, combinations[chosen], strict=True)),
        results[0],
        dict(zip(members, results[1:], strict=True)),
        dict(zip(combinations, tried, strict=True)),
    )


def _compare(
    metric: str, together: float, alone: Mapping[str, float], *, found: bool
) -> None:
    """Warns of a member that is better by itself.

    Args:
        metric: What is compared.
        together: Of the best sum.
        alone: Of each member.
        found: Whether the first member alone was one of the sums, so that it can only
            be better up to rounding.
    """
    best = max(alone, key=lambda name: alone[name])
    if alone[best] > together and not (found and best == next(iter(alone))):
        logger.warning(
            "%s is %.4f together, but %.4f by '%s' alone: it needs to be the first of "
            "'members', with a 0 in 'grid' for the others",
            metric,
            together,
            alone[best],
            best,
        )


def _combinations(
    members: Mapping[str, Recommender], grid: Sequence[float]
) -> list[tuple[float, ...]]:
    """All weights, in the order of :func:`_sums`."""
    if not members:
        raise ValueError("'members' needs at least one recommender (got none)")
    weights = sorted({float(weight) for weight in grid})
    if not weights or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(
            f"'grid' needs to hold finite weights of 0 or more (got {tuple(grid)})"
        )
    number = len(weights) ** (len(members) - 1)
    if number > MAX_COMBINATIONS:
        raise ValueError(
            f"'grid' has {len(weights)} weights, which are {number} combinations for "
            f'{len(members)} members, more than {MAX_COMBINATIONS} (got '
            f'{tuple(weights)}): take fewer weights or fewer members'
        )
    others = itertools.product(weights, repeat=len(members) - 1)
    return [(1.0, *combination) for combination in others]


def _sums(
    parts: Sequence[Tensor], grids: Sequence[Sequence[float]]
) -> Iterator[Tensor]:
    """The first part plus every weighted sum of the others, the last fastest."""
    if not grids:
        yield parts[0]
        return
    first, second, *rest = parts
    for weight in grids[0]:
        # In the order in which an ensemble adds, hence to the same bit.
        total = torch.add(first, second, alpha=weight) if weight > 0 else first
        yield from _sums([total, *rest], grids[1:])


def _size(weights: Sequence[float]) -> tuple[float, ...]:
    """Larger for fewer and smaller weights, and never equal."""
    used = sum(weight > 0 for weight in weights)
    return (-used, -sum(weights), *(-weight for weight in weights))
