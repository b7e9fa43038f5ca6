"""Seconds of a training step with and without freed memory being kept.

    python benchmarks/speed/allocator.py             # Beauty
    python benchmarks/speed/allocator.py --recipes slmrec --out allocator.json

Every round starts a process of either kind, in turn, since the setting is that of a
process; medians over the rounds of the median step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from hellm_pyg.allocator import keep_freed_memory
from hellm_pyg.training.record import commit


def step_seconds(recipe: str, dataset: str, steps: int) -> float:
    """Median of forward, backward and update; the first three warm up."""
    from accelerate import Accelerator

    from hellm_pyg.assembly import build_data, build_loader, build_model
    from hellm_pyg.config import load_config
    from hellm_pyg.training.step import Stepper

    config = load_config(recipe, [f'dataset={dataset}'])
    data, _ = build_data(config.data)
    model: Any = build_model(config, data)
    stepper = Stepper(model, data, config.train, Accelerator(cpu=True))
    model.on_epoch_start(data)
    times = []
    for batch in islice(build_loader(config, data, model), steps + 3):
        began = time.perf_counter()
        found = stepper.backward([batch])
        stepper.update(config.train.lr, found.norm)
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def in_process(kind: str, recipe: str, args: argparse.Namespace) -> float:
    call = [sys.executable, __file__, '--dataset', args.dataset, '--recipes', recipe]
    call += ['--steps', str(args.steps), '--kind', kind]
    return float(subprocess.run(call, check=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--dataset', default='beauty')
    recipes = ['lightgcn', 'pretrain_best', 'slmrec', 'sasrec']
    parser.add_argument('--recipes', nargs='+', default=recipes)
    parser.add_argument('--steps', type=int, default=15)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--out', type=Path)
    parser.add_argument('--kind', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind is not None:
        if args.kind == 'kept':
            keep_freed_memory()
        print(step_seconds(args.recipes[0], args.dataset, args.steps))
        return
    rows = {}
    print('| recipe | as it is, ms | kept, ms | ratio |\n|---|--:|--:|--:|')
    for recipe in args.recipes:
        times: dict[str, list[float]] = {'default': [], 'kept': []}
        for _ in range(args.rounds):
            for kind, found in times.items():
                found.append(in_process(kind, recipe, args))
        default, kept = (statistics.median(found) for found in times.values())
        rows[recipe] = {'default, s': default, 'kept, s': kept, 'ratio': default / kept}
        print(f'| {recipe} | {1000 * default:.1f} | {1000 * kept:.1f} |', end='')
        print(f' {default / kept:.2f} |', flush=True)
    if args.out is not None:
        settings = {k: v for k, v in vars(args).items() if k not in ('out', 'kind')}
        settings |= {'cores': os.cpu_count(), 'commit': commit()}
        args.out.write_text(json.dumps({'settings': settings, 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
