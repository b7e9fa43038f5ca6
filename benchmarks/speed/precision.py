"""Products of a language model's layer in bf16 beside those in fp32.

    python benchmarks/speed/precision.py --out FILE

What ``train.precision=auto`` decides: where a processor only emulates bf16, fp32 is
faster. A product and its gradient with respect to the input, as of frozen weights, in
the shapes of SmolLM2-135M. Times are medians over interleaved runs; a ratio above one
says how many times as long bf16 takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from hellm_pyg.precision import DTYPES, default_device, has_bf16
from hellm_pyg.training.record import commit

SHAPES = ((576, 576), (576, 1536), (1536, 576))


def seconds(
    device: str, dtype: torch.dtype, rows: int, shape: tuple[int, int]
) -> float:
    inner, outer = shape
    x = torch.randn(rows, inner, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(outer, inner, device=device, dtype=dtype)
    start = time.perf_counter()
    (grad,) = torch.autograd.grad(F.linear(x, weight).sum(), x)
    grad.sum().item()  # waits for the device
    return time.perf_counter() - start


def compare(device: str, rows: int, repeats: int) -> list[dict]:
    found = []
    for shape in SHAPES:
        times: dict[str, list[float]] = {name: [] for name in DTYPES}
        for run in range(repeats + 2):
            for name, dtype in DTYPES.items():
                taken = seconds(device, dtype, rows, shape)
                if run > 1:  # the first runs warm up
                    times[name].append(taken)
        medians = {name: statistics.median(own) for name, own in times.items()}
        ratio = medians['bf16'] / medians['fp32']
        found.append({'shape': shape, 'seconds': medians, 'bf16 / fp32': ratio})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default=default_device())
    parser.add_argument('--rows', type=int, default=384, help='tokens of a batch')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--out', type=Path, help='also write the numbers as JSON')
    args = parser.parse_args()
    found = {
        'settings': {
            'device': args.device,
            'has bf16': has_bf16(args.device),
            'threads': torch.get_num_threads(),
            'rows': args.rows,
            'commit': commit(),
        },
        'products': compare(args.device, args.rows, args.repeats),
    }
    print(json.dumps(found, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=2))


if __name__ == '__main__':
    main()
