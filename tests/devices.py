"""What a test runs on: the CPU, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
