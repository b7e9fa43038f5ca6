"""Seconds and memory of preparing a shop's interactions from a Parquet file.

    python benchmarks/speed/prepare.py                       # 10 million interactions
    python benchmarks/speed/prepare.py --interactions 1000000 --out prepare.json

Writes a synthetic log (integer customers, text SKUs, timestamps, in no order) to a
temporary folder, then prepares it in a process of its own, as recipes do: ids, times,
duplicates, 5-core, leave-one-out split, user-item graph, cache. The peak is that of
the process's resident memory, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hellm_pyg.training.record import commit

START = np.datetime64('2023-01-01', 'ms')


def generate(path: Path, interactions: int, users: int, items: int) -> None:
    """Writes a log whose users and items are unevenly active, a block at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    generator = np.random.default_rng(0)
    names = pa.array([f'SKU-{item:07d}' for item in range(items)])
    kinds = {
        'customer': pa.int64(),
        'sku': pa.string(),
        'ordered_at': pa.timestamp('ms'),
    }
    with parquet.ParquetWriter(path, pa.schema(kinds)) as writer:
        for start in range(0, interactions, 1_000_000):
            size = min(1_000_000, interactions - start)
            user = (users * generator.random(size) ** 1.5).astype(np.int64)
            item = (items * generator.random(size) ** 2).astype(np.int64)
            moment = generator.integers(0, 2 * 365 * 86_400_000, size)
            columns = [
                pa.array(10_000_000 + 7 * user),
                names.take(pa.array(item)),
                pa.array(START + moment),
            ]
            writer.write_table(pa.table(columns, schema=pa.schema(kinds)))


def prepare(path: Path, min_count: int) -> dict[str, float]:
    """Prepares a log in this process and measures it."""
    import torch
    from torch_geometric.transforms import Compose

    from hellm_pyg.datasets import InteractionFiles
    from hellm_pyg.transforms import LeaveOneOut, UserItemGraph

    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    began = time.perf_counter()
    dataset = InteractionFiles(
        path.parent / 'cache',
        path,
        user='customer',
        item='sku',
        time='ordered_at',
        min_count=min_count,
        pre_transform=Compose([LeaveOneOut(), UserItemGraph()]),
    )
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        'prepare, s': seconds,
        'CPU, imports included, s': usage.ru_utime + usage.ru_stime,
        'peak, MiB': usage.ru_maxrss / 1024,
        **{name: dataset.report[name] for name in ('users', 'items', 'interactions')},
        'dropped': sum(dataset.report['dropped'].values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--interactions', type=int, default=10_000_000)
    parser.add_argument('--users', type=int, default=500_000)
    parser.add_argument('--items', type=int, default=100_000)
    parser.add_argument('--min-count', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--folder', type=Path, help='of the temporary files')
    parser.add_argument('--out', type=Path)
    parser.add_argument('--prepare', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare is not None:
        print(json.dumps(prepare(args.prepare, args.min_count)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / 'orders.parquet'
        generate(path, args.interactions, args.users, args.items)
        size = path.stat().st_size
        own = [__file__, '--prepare', str(path), '--min-count', str(args.min_count)]
        limits = dict.fromkeys(
            ('OMP_NUM_THREADS', 'ARROW_IO_THREADS'),
            str(args.threads),
        )
        began = time.perf_counter()
        child = subprocess.run(
            [sys.executable, *own],
            env={**os.environ, **limits},
            stdout=subprocess.PIPE,
            check=True,
        )
        row = json.loads(child.stdout.splitlines()[-1])
        row['whole process, s'] = time.perf_counter() - began
    print(
        f'{args.interactions:,} interactions of at most {args.users:,} users and '
        f'{args.items:,} items, {size >> 20} MiB of Parquet, {args.threads} threads of '
        f'{os.cpu_count()} cores\n'
    )
    print('| measured | value |\n|---|--:|')
    for name, value in row.items():
        print(f'| {name} | {value:,.1f} |' if value % 1 else f'| {name} | {value:,} |')
    for name, bound in (('whole process, s', 180), ('peak, MiB', 4096)):
        word = 'within' if row[name] <= bound else 'BEYOND'
        print(f'\n{name}: {row[name]:.0f}, {word} the bound of {bound}')
    if args.out is not None:
        settings = {
            name: getattr(args, name)
            for name in ('interactions', 'users', 'items', 'min_count', 'threads')
        }
        settings |= {
            'cores': os.cpu_count(),
            'commit': commit(),
            'file_mib': size >> 20,
        }
        args.out.write_text(json.dumps({'settings': settings, 'row': row}, indent=2))


if __name__ == '__main__':
    main()
