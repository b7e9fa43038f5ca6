"""Scores of a catalogue in aligned rows beside the plain product.

    python benchmarks/speed/scores.py --out FILE

Most numbers of items leave rows of scores that start anywhere in memory, which BLAS may
write more slowly. Times of :func:`~hellm_pyg.nn.scoring.inner_products`, which adds
columns, are medians over runs that alternate with the plain product; a ratio above one
says how many times as long that takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hellm_pyg.nn.scoring import inner_products
from hellm_pyg.precision import default_device
from hellm_pyg.training.record import commit


def plain(x: Tensor, table: Tensor) -> Tensor:
    return x @ table.t()


def seconds(product: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> float:
    start = time.perf_counter()
    product(*inputs)[-1, -1].item()  # waits for the device
    return time.perf_counter() - start


def compare(device: str, rows: int, items: int, width: int, repeats: int) -> dict:
    x = torch.randn(rows, width, device=device)
    table = torch.randn(items, width, device=device)
    times: dict[str, list[float]] = {'plain': [], 'aligned': []}
    for run in range(repeats + 2):
        for name, product in (('plain', plain), ('aligned', inner_products)):
            taken = seconds(product, x, table)
            if run > 1:  # the first runs warm up
                times[name].append(taken)
    medians = {name: statistics.median(own) for name, own in times.items()}
    ratio = medians['plain'] / medians['aligned']
    return {
        'items': items,
        'width': width,
        'seconds': medians,
        'plain / aligned': ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default=default_device())
    parser.add_argument('--rows', type=int, default=1024, help='queries of a batch')
    parser.add_argument('--items', type=int, nargs='+', default=[12101, 11924, 18357])
    parser.add_argument('--widths', type=int, nargs='+', default=[64, 128])
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--out', type=Path, help='also write the numbers as JSON')
    args = parser.parse_args()
    found = {
        'settings': {
            'device': args.device,
            'threads': torch.get_num_threads(),
            'rows': args.rows,
            'commit': commit(),
        },
        'products': [
            compare(args.device, args.rows, items, width, args.repeats)
            for items in args.items
            for width in args.widths
        ],
    }
    print(json.dumps(found, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=2))


if __name__ == '__main__':
    main()
