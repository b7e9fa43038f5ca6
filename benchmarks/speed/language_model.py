"""Throughput of HeLLM on real histories: causal beside user-level.

    python benchmarks/speed/language_model.py                      # Beauty, 30 layers
    python benchmarks/speed/language_model.py --layers 8 --out llm.json

Takes the recipe ``finetune_best`` with random item tables, whose values do not change
the cost. Training counts real item tokens a second (positions that are read and have a
target) over batches drawn from a shuffled epoch; ranking counts users a second, all
items scored and the target's rank taken. Each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hellm_pyg.assembly import build_data, build_llm, build_loader
from hellm_pyg.config import TrainConfig, load_config
from hellm_pyg.evaluation import evaluate
from hellm_pyg.llm import LLMRecommender, backbone_label
from hellm_pyg.training.record import commit
from hellm_pyg.training.schedule import build_optimizer

TABLES = '{graph: "random:64", seq: "random:64"}'


def training(
    model: LLMRecommender, loader: Any, config: TrainConfig, batches: int, rounds: int
) -> float:
    """Item tokens a second, forward, backward and step."""
    optimizer = build_optimizer(model, config)
    model.train()
    rates = []
    for epoch in range(rounds):
        loader.set_epoch(epoch)
        tokens, start = 0, time.perf_counter()
        for batch in islice(loader, batches):
            model.loss(None, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            tokens += batch.num_targets
        rates.append(tokens / (time.perf_counter() - start))
    return statistics.median(rates)


def ranking(model: LLMRecommender, data: Any, users: int, rounds: int) -> float:
    """Users a second, encoding of the catalogue included."""
    rates = []
    for round_ in range(rounds):
        generator = torch.Generator().manual_seed(round_)
        drawn = torch.randperm(data['user'].num_nodes, generator=generator)[:users]
        start = time.perf_counter()
        evaluate(model, data, 'test', users=drawn.sort().values, batch_size=64)
        rates.append(users / (time.perf_counter() - start))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--dataset', default='beauty')
    parser.add_argument('--layers', type=int, default=30)
    parser.add_argument('--batch-size', type=int, default=128, help='users of a step')
    parser.add_argument('--batches', type=int, default=20, help='a round of training')
    parser.add_argument('--users', type=int, default=1500, help='a round of ranking')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for scope in ('causal', 'user'):
        targets = 'all' if scope == 'causal' else 'last'
        overrides = [
            f'dataset={args.dataset}',
            f'llm.tables={TABLES}',
            f'llm.num_layers={args.layers}',
            'llm.train_tables=[]',
            f'train.batch_size={args.batch_size}',
            f'llm.scope={scope}',
            f'train.targets={targets}',
        ]
        config = load_config('finetune_best', overrides)
        assert config.llm is not None
        name = backbone_label(config.llm.name)
        data, ids = build_data(config.data)
        model = build_llm(config, data, ids)
        loader = build_loader(config, data, model)
        share = 1 if scope == 'causal' else 8  # a user-level row costs that much more
        rows[scope] = {
            'training, item tokens/s': training(
                model, loader, config.train, max(1, args.batches // share), args.rounds
            ),
            'ranking, users/s': ranking(model, data, args.users // share, args.rounds),
        }
    print(f'{name}, {args.layers} layers, bf16, ', end='')
    print(f'{args.dataset}, {os.cpu_count()} cores, batch {config.train.batch_size}')
    print('| form | training, item tokens/s | ranking, users/s |\n|---|--:|--:|')
    for scope, row in rows.items():
        print(f'| {scope} |' + ''.join(f' {value:.0f} |' for value in row.values()))
    if args.out is not None:
        settings = {k: v for k, v in vars(args).items() if k != 'out'}
        settings |= {'cores': os.cpu_count(), 'commit': commit()}
        settings['OMP_WAIT_POLICY'] = os.environ.get('OMP_WAIT_POLICY')
        args.out.write_text(json.dumps({'settings': settings, 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
