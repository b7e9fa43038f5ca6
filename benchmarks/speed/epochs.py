"""Seconds of a whole training epoch, and of ranking all items for all users.

    python benchmarks/speed/epochs.py                   # Beauty, 3 epochs a recipe
    python benchmarks/speed/epochs.py --recipes sasrec --epochs 5 --out epochs.json

The recipes are run as they are, by the trainer; ranking is that of the validation and
includes the propagation over the graph. Medians over the epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from hellm_pyg import experiment
from hellm_pyg.config import load_config
from hellm_pyg.training.record import commit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--dataset', default='beauty')
    recipes = ['lightgcn', 'pretrain_best', 'sasrec']
    parser.add_argument('--recipes', nargs='+', default=recipes)
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    overrides = [f'dataset={args.dataset}', f'train.epochs={args.epochs}']
    rows = {}
    for recipe in args.recipes:
        config = load_config(recipe, [*overrides, 'train.eval_every=1'])
        with tempfile.TemporaryDirectory() as folder:
            experiment.pretrain(config, folder)
            lines = (Path(folder) / 'log.jsonl').read_text().splitlines()
        tokens = config.train.batch_tokens
        records = [record for record in map(json.loads, lines) if 'metrics' in record]
        rows[recipe] = {
            'batch': f'{tokens} items' if tokens else f'{config.train.batch_size} rows',
            'epoch, s': statistics.median(r['seconds'] for r in records),
            'ranking, s': statistics.median(r['eval_seconds'] for r in records),
        }
    print(f'{args.dataset}, {os.cpu_count()} cores, {args.epochs} epochs')
    print('| recipe | batch | epoch, s | ranking, s |\n|---|--:|--:|--:|')
    for recipe, row in rows.items():
        batch, epoch, ranking = row.values()
        print(f'| {recipe} | {batch} | {epoch:.1f} | {ranking:.2f} |')
    if args.out is not None:
        settings = {k: v for k, v in vars(args).items() if k != 'out'}
        settings |= {'cores': os.cpu_count(), 'commit': commit()}
        args.out.write_text(json.dumps({'settings': settings, 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
