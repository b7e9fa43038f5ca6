"""Ranks of held-out items: by comparison, by sorting, by top-k and PyG's metrics.

    python benchmarks/speed/ranking.py                  # synthetic, Beauty's size
    python benchmarks/speed/ranking.py --num-items 100000 --out ranking.json

Every method gets the same batches of scores and masks the same seen items. Times are
medians over interleaved batches; scoring itself is not timed. N@20 shows that the
methods agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.metrics import (
    LinkPredMetricCollection,
    LinkPredNDCG,
    LinkPredRecall,
)

from hellm_pyg.evaluation import ndcg, summarize, target_rank

KS = (10, 20)


class Batch(NamedTuple):
    """Scores of some users, their targets and the pairs that are masked."""

    scores: Tensor
    target: Tensor
    row: Tensor
    col: Tensor


def by_comparison(batch: Batch) -> float:
    rank = target_rank(*batch)
    return summarize(rank, KS)['N@20']


def masked(batch: Batch) -> Tensor:
    scores = batch.scores.clone()
    scores[batch.row, batch.col] = float('-inf')
    return scores


def by_sorting(batch: Batch) -> float:
    order = masked(batch).argsort(dim=1, descending=True)
    rank = (order == batch.target.unsqueeze(1)).int().argmax(dim=1) + 1
    return summarize(rank, KS)['N@20']


def by_pyg(batch: Batch) -> float:
    metrics = LinkPredMetricCollection(
        {
            f'{name}@{k}': metric(k)
            for k in KS
            for name, metric in (('R', LinkPredRecall), ('N', LinkPredNDCG))
        }
    )
    top = masked(batch).topk(max(KS), dim=1).indices
    label = torch.stack([torch.arange(batch.target.numel()), batch.target])
    metrics.update(top, label)
    return float(metrics.compute()['N@20'])


def by_topk(batch: Batch) -> float:
    top = masked(batch).topk(max(KS), dim=1).indices
    hit = top == batch.target.unsqueeze(1)
    rank = torch.where(hit.any(dim=1), hit.int().argmax(dim=1) + 1, max(KS) + 1)
    return float(ndcg(rank, max(KS)).mean())


CONTENDERS: dict[str, Callable[[Batch], float]] = {
    'target_rank (comparison)': by_comparison,
    'argsort of all items': by_sorting,
    'topk + PyG LinkPred metrics': by_pyg,
    'topk + position': by_topk,
}


def make_batch(rows: int, num_items: int, history: int, seed: int) -> Batch:
    """Scores in which targets lie well above the average item."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, num_items, generator=generator)
    items = torch.rand(rows, num_items, generator=generator).topk(history + 1).indices
    target, seen = items[:, 0], items[:, 1:]
    scores[torch.arange(rows), target] += 2.5
    row = torch.arange(rows).repeat_interleave(history)
    return Batch(scores, target, row, seen.reshape(-1))


def compare(batches: list[Batch], num_users: int, repeats: int) -> list[dict]:
    rows = batches[0].target.numel()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    value: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for run in range(repeats + 1):
        for batch in batches:
            for name, function in CONTENDERS.items():
                start = time.perf_counter()
                found = function(batch)
                if run > 0:  # the first run warms up
                    seconds[name].append(time.perf_counter() - start)
                    value[name].append(found)
    ours = statistics.median(next(iter(seconds.values())))
    return [
        {
            'method': name,
            'items': batches[0].scores.size(1),
            'rows': rows,
            'seconds_per_batch': statistics.median(times),
            'seconds_for_all_users': statistics.median(times) * num_users / rows,
            'times_ours': statistics.median(times) / ours,
            'ndcg': statistics.fmean(value[name]),
            'runs': times,
        }
        for name, times in seconds.items()
    ]


def markdown(rows: list[dict], num_users: int) -> str:
    lines = [
        f'| method | ms a batch | s for {num_users:,} users | times ours | N@20 |',
        '|---|--:|--:|--:|--:|',
    ]
    for row in rows:
        lines.append(
            f'| {row["method"]} | {1000 * row["seconds_per_batch"]:.1f} | '
            f'{row["seconds_for_all_users"]:.2f} | {row["times_ours"]:.2f} | '
            f'{row["ndcg"]:.4f} |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--num-users', type=int, default=22_363)
    parser.add_argument('--num-items', type=int, default=12_101)
    parser.add_argument('--rows', type=int, default=512, help='users of a batch')
    parser.add_argument('--history', type=int, default=8, help='seen items of a user')
    parser.add_argument('--batches', type=int, default=4)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--out', type=Path, help='also write the numbers as JSON')
    args = parser.parse_args()
    batches = [
        make_batch(args.rows, args.num_items, args.history, seed)
        for seed in range(args.batches)
    ]
    rows = compare(batches, args.num_users, args.repeats)
    print(
        f'{args.rows} users x {args.num_items:,} items a batch, '
        f'{torch.get_num_threads()} threads of {os.cpu_count()} cores\n'
    )
    print(markdown(rows, args.num_users))
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=2))


if __name__ == '__main__':
    main()
