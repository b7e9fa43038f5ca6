"""What a test runs on: the CPU, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hellm_pyg.training.processes import make_accelerator

DEVICES = [
    'cpu',
    pytest.param(
        'cuda',
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(
                not torch.cuda.is_available(), reason='needs a CUDA device'
            ),
        ],
    ),
]


@contextmanager
def accelerator_on(device: str) -> Iterator[Accelerator]:
    """Processes and devices as a run on that device has them."""
    values = {'ACCELERATE_USE_CPU': str(device == 'cpu').lower()}
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with mock.patch.dict('os.environ', values):
            accelerator = make_accelerator()
            assert accelerator.device.type == device
            yield accelerator
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def pretended_gpus(monkeypatch: pytest.MonkeyPatch, bf16: list[bool]) -> None:
    """Devices that all emulate bf16 and some have; the first is the current one."""
    current = [0]

    @contextmanager
    def device(which: int | str) -> Iterator[None]:
        former = current[0]
        current[0] = which if isinstance(which, int) else torch.device(which).index or 0
        try:
            yield
        finally:
            current[0] = former

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or bf16[current[0]]

    def properties(index: int) -> SimpleNamespace:
        return SimpleNamespace(name=f'gpu {index}', total_memory=2**30)

    monkeypatch.setattr(torch.cuda, 'device', device)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(bf16))
    monkeypatch.setattr(torch.cuda, 'get_device_properties', properties)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', is_bf16_supported)


def pretended_cpu(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    """A machine without accelerator whose processor multiplies in bf16, or not."""
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: False)
    for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
        monkeypatch.setattr(torch.cpu, name, lambda: bf16, raising=False)
