"""k-nearest-neighbour hyperedges: FAISS in blocks beside a dense similarity matrix.

    python benchmarks/speed/knn.py                         # synthetic, Beauty's size
    python benchmarks/speed/knn.py --data text.npy --k 5 --out knn.json

Times are medians over interleaved runs; ratios are against the dense form. Memory is
the growth of the peak of a fresh process. Recall counts neighbours shared with the
dense form.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.transforms import KNNHyperedges


def dense(x: Tensor, k: int) -> Tensor:
    x = F.normalize(x, dim=-1)
    col = (x @ x.t()).topk(k, dim=-1).indices.view(-1)
    return torch.stack([torch.arange(x.size(0)).repeat_interleave(k), col])


def hyperedges(x: Tensor, k: int, index: Literal['flat', 'ivf']) -> Tensor:
    data = HeteroData()
    data['item'].num_nodes = x.size(0)
    data['item'].x_feature = x
    out = KNNHyperedges(k=k, index=index)(data)
    return out['item', 'member_of', 'feature_hyperedge'].edge_index.as_tensor()


CONTENDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    'dense matmul + topk': dense,
    'KNNHyperedges flat': lambda x, k: hyperedges(x, k, 'flat'),
    'KNNHyperedges ivf': lambda x, k: hyperedges(x, k, 'ivf'),
}


def synthetic(num_items: int, width: int, num_clusters: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(num_clusters, width, generator=generator)
    cluster = torch.randint(num_clusters, (num_items,), generator=generator)
    return center[cluster] + torch.randn(num_items, width, generator=generator)


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def measure_memory(name: str, path: str | None, shape: list[int], k: int) -> float:
    """Growth of the peak in a fresh process that has loaded the features and faiss.

    Call it before this process grows: a child's recorded peak starts at its parent's.
    """
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    args = (name, path, shape, k, torch.get_num_threads(), sender)
    process = context.Process(target=_memory_worker, args=args)
    process.start()
    sender.close()
    growth = receiver.recv()
    process.join()
    return growth


def _memory_worker(
    name: str,
    path: str | None,
    shape: list[int],
    k: int,
    threads: int,
    sender: Connection,
) -> None:
    torch.set_num_threads(threads)
    x = load(path, *shape)
    CONTENDERS[name](x[:1000].clone(), k)  # libraries and their buffers
    before = peak_mib()
    CONTENDERS[name](x, k)
    sender.send(peak_mib() - before)


def load(path: str | None, num_items: int, width: int) -> Tensor:
    if path is None:
        return synthetic(num_items, width)
    return torch.from_numpy(np.load(path).astype(np.float32))


def compare(x: Tensor, k: int, repeats: int) -> list[dict]:
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    found: dict[str, Tensor] = {}
    for run in range(repeats + 1):
        for name, function in CONTENDERS.items():
            start = time.perf_counter()
            row, col = function(x, k)
            if run > 0:  # the first run warms up
                seconds[name].append(time.perf_counter() - start)
            found[name] = row * x.size(0) + col
    reference = found['dense matmul + topk']
    base = statistics.median(seconds['dense matmul + topk'])
    return [
        {
            'items': x.size(0),
            'width': x.size(1),
            'k': k,
            'method': name,
            'seconds': statistics.median(times),
            'speedup': base / statistics.median(times),
            'recall': torch.isin(found[name], reference).float().mean().item(),
            'runs': times,
        }
        for name, times in seconds.items()
    ]


def markdown(rows: list[dict]) -> str:
    lines = [
        '| items | width | k | method | seconds | times faster | recall | peak MiB |',
        '|--:|--:|--:|---|--:|--:|--:|--:|',
    ]
    for row in rows:
        lines.append(
            f'| {row["items"]:,} | {row["width"]} | {row["k"]} | {row["method"]} | '
            f'{row["seconds"]:.3f} | {row["speedup"]:.2f} | {row["recall"]:.4f} | '
            f'{row["peak_mib"]:.0f} |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', help='features as .npy, [items, width]')
    parser.add_argument('--num-items', type=int, default=12_101)
    parser.add_argument('--widths', type=int, nargs='+', default=[384, 768])
    parser.add_argument('--k', type=int, default=10)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--out', type=Path, help='also write the numbers as JSON')
    args = parser.parse_args()
    widths = args.widths[:1] if args.data else args.widths
    memory = [
        measure_memory(name, args.data, [args.num_items, width], args.k)
        for width in widths
        for name in CONTENDERS
    ]
    rows: list[dict] = []
    for width in widths:
        x = load(args.data, args.num_items, width)
        rows += compare(x, args.k, args.repeats)
    for row, peak in zip(rows, memory, strict=True):
        row['peak_mib'] = peak
    print(f'{torch.get_num_threads()} threads of {os.cpu_count()} cores\n')
    print(markdown(rows))
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=2))


if __name__ == '__main__':
    main()
