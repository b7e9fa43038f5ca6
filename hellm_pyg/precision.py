"""Arithmetic in half precision where a device has it, and not where it is emulated."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal['auto', 'fp32', 'bf16']

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}


def default_device() -> str:
    """The accelerator, if there is one and accelerate is not told to leave it alone."""
    from accelerate.utils import parse_flag_from_env

    if torch.accelerator.is_available() and not parse_flag_from_env(
        'ACCELERATE_USE_CPU'
    ):
        return str(torch.accelerator.current_accelerator())
    return 'cpu'


def has_bf16(device: str) -> bool:
    """Whether a device multiplies in bf16 itself.

    What it only emulates is slower than fp32, on a CPU some twenty times
    (``benchmarks/speed/precision.py``).

    Args:
        device: Its name, as ``'cpu'`` or ``'cuda:1'``.
    """
    if device.startswith('cuda'):
        with torch.cuda.device(device):  # the question is about the current one
            return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
    return device == 'cpu' and any(getattr(torch.cpu, n, bool)() for n in names)


def resolve_precision(
    precision: Precision, device: str | None = None
) -> Literal['fp32', 'bf16']:
    """Replaces ``'auto'`` by bf16 where the device has it, else by fp32.

    Args:
        precision: ``'auto'``, ``'fp32'`` or ``'bf16'``.
        device: Its name (default: :func:`default_device`).

    Raises:
        ValueError: If there is no such precision.
    """
    if precision not in ('auto', 'fp32', 'bf16'):
        raise ValueError(
            f"'precision' needs to be 'auto', 'fp32' or 'bf16' (got {precision!r})"
        )
    if precision == 'auto':
        return 'bf16' if has_bf16(device or default_device()) else 'fp32'
    return precision


def usable_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type to read weights in: fp32 for bf16 that a CPU would only emulate.

    It holds them exactly. A GPU keeps its memory, and bf16.

    Args:
        dtype: The type that they were saved in.
    """
    device = default_device()
    if dtype == torch.bfloat16 and device == 'cpu' and not has_bf16(device):
        return torch.float32
    return dtype
