"""LightHypergraphConv beside PyG's HypergraphConv and an explicit user-user matrix.

    python benchmarks/speed/hypergraph_conv.py                # synthetic, as Beauty
    python benchmarks/speed/hypergraph_conv.py --data sequences.txt --out conv.json

The graph is the users' training items (all but the last two of each line). Times are
medians of forward + backward over interleaved runs; ratios are against HypergraphConv,
whose linear map is replaced by the identity and which normalises like rw. CPU time,
summed over threads, is what to compare on a machine that is busy with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn import HypergraphConv

from hellm_pyg.nn import LightHypergraphConv
from hellm_pyg.nn.spmm import spmm

NUM_USERS, NUM_ITEMS, NUM_ENTRIES = 22_363, 12_101, 153_776


def read(path: Path) -> EdgeIndex:
    lines = [line.split() for line in path.read_text().splitlines()]
    items = [[int(item) - 1 for item in line[1:]] for line in lines]
    row = [user for user, history in enumerate(items) for _ in history[:-2]]
    col = [item for history in items for item in history[:-2]]
    size = (len(items), 1 + max(max(history) for history in items))
    return EdgeIndex(torch.tensor([row, col]), sparse_size=size, sort_order='row')


def synthetic() -> EdgeIndex:
    """As many distinct entries as Beauty has, a few items being popular."""
    key = torch.empty(0, dtype=torch.long)
    while key.numel() < NUM_ENTRIES:
        row = torch.randint(NUM_USERS, (NUM_ENTRIES,))
        col = (torch.rand(NUM_ENTRIES).pow(2) * NUM_ITEMS).long()
        key = torch.cat([key, row * NUM_ITEMS + col]).unique()
    key = key[torch.randperm(key.numel())[:NUM_ENTRIES]].sort().values
    return EdgeIndex(
        torch.stack([key // NUM_ITEMS, key % NUM_ITEMS]),
        sparse_size=(NUM_USERS, NUM_ITEMS),
        sort_order='row',
    )


def explicit(graph: EdgeIndex) -> Tensor:
    """The row-normalised co-occurrence matrix of 'clique_rw'."""
    h = graph.to_sparse_csr()
    a = torch.sparse.mm(h, h.t().to_sparse_csr()).to_sparse_coo().coalesce()
    row, col = a.indices()
    index, value = a.indices()[:, row != col], a.values()[row != col]
    degree = torch.zeros(a.size(0)).index_add_(0, index[0], value)
    value = value / degree[index[0]]
    return torch.sparse_coo_tensor(index, value, a.shape).to_sparse_csr()


def contenders(graph: EdgeIndex, width: int) -> dict[str, Callable[[Tensor], Tensor]]:
    index, num_edges = graph.as_tensor(), graph.num_cols
    csr, matrix = graph.to_sparse_csr(), explicit(graph)
    transposed = matrix.t().to_sparse_csr()
    pyg = HypergraphConv(width, width, bias=False)
    pyg.lin = torch.nn.Identity()
    rw, clique = LightHypergraphConv('rw'), LightHypergraphConv('clique_rw')
    weight = torch.rand(num_edges).requires_grad_()
    return {
        'PyG HypergraphConv': lambda x: pyg(x, index, num_edges=num_edges),
        'explicit U x U matrix and its transpose': lambda x: spmm(
            matrix, transposed, x
        ),
        'ours, rw, plain index': lambda x: rw(x, index, num_edges=num_edges),
        'ours, rw, EdgeIndex': lambda x: rw(x, graph),
        'ours, rw, torch CSR': lambda x: rw(x, csr),
        'ours, clique_rw, EdgeIndex': lambda x: clique(x, graph),
        'ours, clique_rw, EdgeIndex, trained W': lambda x: clique(x, graph, weight),
    }


def measure(
    functions: dict[str, Callable[[Tensor], Tensor]], x: Tensor, rounds: int
) -> dict[str, tuple[float, float]]:
    """Median seconds on the clock and on the CPU."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    grad = torch.randn_like(x)
    for i in range(-2, rounds):  # the first two rounds warm up
        for name, function in functions.items():
            x.grad = None
            start = time.perf_counter(), time.process_time()
            function(x).backward(grad)
            end = time.perf_counter(), time.process_time()
            if i >= 0:
                seconds[name].append((end[0] - start[0], end[1] - start[1]))
    return {
        name: (statistics.median(wall), statistics.median(cpu))
        for name, values in seconds.items()
        for wall, cpu in [zip(*values, strict=True)]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, help='lines of "user item item ..."')
    parser.add_argument('--width', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--out', type=Path, help='also write the numbers as JSON')
    args = parser.parse_args()
    if args.data is None and 'HELLM_DATA' in os.environ:
        args.data = Path(os.environ['HELLM_DATA']) / 'amazon_beauty' / 'sequences.txt'

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    graph = synthetic() if args.data is None else read(args.data)
    graph.fill_cache_()
    x = torch.randn(graph.num_rows, args.width, requires_grad=True)
    median = measure(contenders(graph, args.width), x, args.rounds)

    wall, cpu = median['PyG HypergraphConv']
    rows: list[dict[str, Any]] = [
        {
            'name': n,
            'seconds': w,
            'ratio': wall / w,
            'cpu_seconds': c,
            'cpu_ratio': cpu / c,
        }
        for n, (w, c) in median.items()
    ]
    print(
        f'{graph.num_rows} users x {graph.num_cols} items, {graph.size(1)} entries, '
        f'width {args.width}, {args.threads} threads, {args.rounds} rounds\n'
    )
    print('| forward + backward | ms | times faster | CPU ms | times less |')
    print('|---|---:|---:|---:|---:|')
    for row in rows:
        print(
            f'| {row["name"]} | {1e3 * row["seconds"]:.1f} | {row["ratio"]:.1f} '
            f'| {1e3 * row["cpu_seconds"]:.1f} | {row["cpu_ratio"]:.1f} |'
        )
    if args.out is not None:
        setting = {
            'data': args.data and '/'.join(args.data.parts[-2:]),
            'size': [graph.num_rows, graph.num_cols, graph.size(1)],
            'width': args.width,
            'threads': args.threads,
            'rounds': args.rounds,
            'torch': torch.__version__,
        }
        args.out.write_text(json.dumps({'setting': setting, 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
