"""Products with a sparse matrix, by torch's several kernels.

    python benchmarks/speed/sparse.py --out FILE

The matrix is a user-item graph of Beauty's size, a few items being popular. For
:func:`~hellm_pyg.nn.spmm.spmm` a row of it is a bag of embeddings; the alternatives are
``torch.sparse.mm``, through MKL on most CPUs, and the same with a reduction. The inner
products of a graph's edges, as in GRCN and LATTICE, have gathered rows beside them.
Medians over runs that alternate; a ratio says how many times as long another one takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hellm_pyg.nn.models.edges import Edges
from hellm_pyg.nn.spmm import product
from hellm_pyg.precision import default_device
from hellm_pyg.training.record import commit

NUM_USERS, NUM_ITEMS, NUM_EDGES = 22_363, 12_101, 153_776


def graph(device: str) -> Edges:
    user = torch.randint(NUM_USERS, (NUM_EDGES,))
    item = (torch.rand(NUM_EDGES).pow(2) * NUM_ITEMS).long()
    key = (user * NUM_ITEMS + item).unique()
    pairs = torch.stack([key // NUM_ITEMS, key % NUM_ITEMS]).to(device)
    return Edges.from_pairs(pairs, NUM_USERS, NUM_ITEMS)


def gathered(edges: Edges, x: Tensor, y: Tensor) -> Tensor:
    return (x[edges.row] * y[edges.col]).sum(dim=1)


def compare(contenders: Mapping[str, Callable[[], Tensor]], repeats: int) -> dict:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(repeats + 2):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()[-1].sum().item()  # waits for the device
            if run > 1:  # the first runs warm up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(own) for name, own in times.items()}
    own = medians['ours']
    return {
        'seconds': medians,
        'ratio': {name: taken / own for name, taken in medians.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default=default_device())
    parser.add_argument('--widths', type=int, nargs='+', default=[64, 128])
    parser.add_argument('--repeats', type=int, default=25)
    parser.add_argument('--out', type=Path, help='also write the numbers as JSON')
    args = parser.parse_args()
    warnings.filterwarnings('ignore', '.*Sparse CSR tensor support.*')
    torch.manual_seed(0)
    edges = graph(args.device)
    matrix = edges.matrix(torch.rand(edges.row.numel(), device=args.device))
    found: dict = {
        'settings': {
            'device': args.device,
            'threads': torch.get_num_threads(),
            'size': [NUM_USERS, NUM_ITEMS, edges.row.numel()],
            'commit': commit(),
        },
        'matrix x features': {},
        'inner products of edges': {},
    }
    for width in args.widths:
        x, y = (torch.randn(n, width, device=args.device) for n in matrix.shape)
        products = {'ours': partial(product, matrix, y)}
        products['torch.sparse.mm'] = partial(torch.sparse.mm, matrix, y)
        if args.device == 'cpu':
            products['... with a sum'] = partial(torch.sparse.mm, matrix, y, 'sum')
        dots = {'ours': partial(edges.dot, x, y)}
        dots['gathered'] = partial(gathered, edges, x, y)
        found['matrix x features'][width] = compare(products, args.repeats)
        found['inner products of edges'][width] = compare(dots, args.repeats)
    print(json.dumps(found, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=2))


if __name__ == '__main__':
    main()
