"""Seconds of a HeLLMPre step and epoch by the scope of the contrast.

    python benchmarks/speed/pretraining.py                  # Beauty, 20 steps a scope
    python benchmarks/speed/pretraining.py --scopes batch 1024 --out pretraining.json

Takes the recipe ``pretrain_released``. An epoch is the number of its steps times the
median step (forward, backward, Adam); the full contrast, quadratic in users and items,
is never run for a whole epoch here.
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
from tqdm import tqdm

from hellm_pyg.assembly import build_data, build_loader, build_model
from hellm_pyg.config import load_config
from hellm_pyg.training.record import commit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--dataset', default='beauty')
    parser.add_argument('--scopes', nargs='+', default=['batch', '1024', 'full'])
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    rows = {}
    for scope in args.scopes:
        overrides = [f'dataset={args.dataset}', f'model.scope={scope}']
        config = load_config('pretrain_released', overrides)
        data, _ = build_data(config.data)
        torch.manual_seed(config.train.seed)
        model: Any = build_model(config, data)
        loader = build_loader(config, data, model)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.train.lr)
        times = []
        # The first step warms caches up.
        for batch in tqdm(islice(loader, args.steps + 1), scope, args.steps + 1):
            start = time.perf_counter()
            model.loss(data, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - start)
        step = statistics.median(times[1:])
        rows[scope] = {'step, s': step, 'epoch, s': step * len(loader)}
    print(f'HeLLMPre, {args.dataset}, {os.cpu_count()} cores, {args.steps} steps')
    print('| contrast | step, s | epoch, s | ratio |\n|---|--:|--:|--:|')
    base = min(row['step, s'] for row in rows.values())
    for scope, row in rows.items():
        step, epoch = row['step, s'], row['epoch, s']
        print(f'| {scope} | {step:.3f} | {epoch:.1f} | {step / base:.1f} |')
    if args.out is not None:
        settings = {k: v for k, v in vars(args).items() if k != 'out'}
        settings |= {'cores': os.cpu_count(), 'commit': commit()}
        args.out.write_text(json.dumps({'settings': settings, 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
