"""ContrastiveLoss beside the same loss with automatic differentiation.

    python benchmarks/speed/contrast.py                           # Beauty's users
    python benchmarks/speed/contrast.py --nodes 4000 --rounds 5 --out contrast.json

Times are medians of forward + backward over interleaved runs; ratios are against the
naive blocks. CPU time, summed over threads, is what to compare on a machine that is
busy with other work. "Held" is what the forward pass keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hellm_pyg.nn import ContrastiveLoss

NUM_USERS, TEMPERATURE = 22_363, 0.5
Loss = Callable[[Tensor, Tensor], Tensor]


def block(a: Tensor, b: Tensor, start: int, size: int) -> Tensor:
    """Summed loss of a block of anchors, as released: exponentials, then sums."""
    row = torch.arange(start, min(start + size, len(a)))
    inter = (a[row] @ b.t() / TEMPERATURE).exp()
    intra = (a[row] @ a.t() / TEMPERATURE).exp()
    column = torch.arange(len(row))
    own, positive = intra[column, row], inter[column, row]
    return -(positive / (inter.sum(1) + intra.sum(1) - own)).log().sum()


def naive(a: Tensor, b: Tensor) -> Tensor:
    a, b = F.normalize(a), F.normalize(b)
    blocks = [block(a, b, i, 2048) for i in range(0, len(a), 2048)]
    return torch.stack(blocks).sum() / len(a)


def checkpointed(a: Tensor, b: Tensor) -> Tensor:
    a, b = F.normalize(a), F.normalize(b)
    losses = [
        checkpoint(block, a, b, i, 2048, use_reentrant=False)
        for i in range(0, len(a), 2048)
    ]
    return sum(losses) / len(a)


def contenders(num_nodes: int, batch_size: int) -> dict[str, Loss]:
    index = torch.randperm(num_nodes)[:batch_size]
    full = ContrastiveLoss(TEMPERATURE, scope='full')
    sampled = ContrastiveLoss(TEMPERATURE, scope=batch_size)
    batch = ContrastiveLoss(TEMPERATURE, scope='batch')
    return {
        'naive blocks': naive,
        'blocks with activation checkpointing': checkpointed,
        "ours, scope='full'": full,
        f'ours, scope={batch_size}': lambda a, b: sampled(a, b, index=index),
        f"ours, scope='batch' of {batch_size}": lambda a, b: batch(a, b, index=index),
    }


def held(loss: Loss, z: list[Tensor]) -> int:
    """Bytes of distinct storages that the forward pass saves."""
    storages: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        out = loss(*z)  # alive until the end, so that no address is used twice
    del out
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--nodes', type=int, default=NUM_USERS)
    parser.add_argument('--width', type=int, default=64)
    parser.add_argument('--batch-size', type=int, default=1024)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--out', type=Path, help='also write the numbers as JSON')
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    z = [torch.randn(args.nodes, args.width, requires_grad=True) for _ in range(2)]
    losses = contenders(args.nodes, min(args.batch_size, args.nodes))
    memory = {name: held(loss, z) for name, loss in losses.items()}
    wall: dict[str, list[float]] = {name: [] for name in losses}
    cpu: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(args.rounds):  # warm from the forward passes above
        for name, loss in losses.items():
            start = time.perf_counter(), time.process_time()
            torch.autograd.grad(loss(*z), z)
            wall[name].append(time.perf_counter() - start[0])
            cpu[name].append(time.process_time() - start[1])

    slow = statistics.median(wall['naive blocks'])
    rows: list[dict[str, Any]] = [
        {
            'name': name,
            'seconds': statistics.median(wall[name]),
            'ratio': slow / statistics.median(wall[name]),
            'cpu_seconds': statistics.median(cpu[name]),
            'held_bytes': memory[name],
        }
        for name in losses
    ]
    print(
        f'{args.nodes} nodes, width {args.width}, {args.threads} threads, '
        f'{args.rounds} rounds\n'
    )
    print('| forward + backward | s | times faster | CPU s | MiB held |')
    print('|---|---:|---:|---:|---:|')
    for row in rows:
        print(
            f'| {row["name"]} | {row["seconds"]:.3f} | {row["ratio"]:.1f} '
            f'| {row["cpu_seconds"]:.3f} | {row["held_bytes"] / 2**20:.1f} |'
        )
    if args.out is not None:
        setting = {
            'nodes': args.nodes,
            'width': args.width,
            'threads': args.threads,
            'rounds': args.rounds,
            'torch': torch.__version__,
        }
        args.out.write_text(json.dumps({'setting': setting, 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
