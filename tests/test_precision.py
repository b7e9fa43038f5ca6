from __future__ import annotations

import pytest
import torch

from hellm_pyg.precision import (
    DTYPES,
    default_device,
    has_bf16,
    resolve_precision,
    usable_dtype,
)
from tests.devices import pretended_cpu, pretended_gpus


def test_the_precision_is_that_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended_gpus(monkeypatch, bf16=[True, False])
    assert resolve_precision('auto', 'cuda') == 'bf16'
    assert resolve_precision('auto', 'cuda:1') == 'fp32'
    pretended_gpus(monkeypatch, bf16=[False, True])
    assert resolve_precision('auto', 'cuda') == 'fp32'
    assert resolve_precision('auto', 'cuda:1') == 'bf16'


def test_a_gpu_reads_bf16_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended_gpus(monkeypatch, bf16=[False])
    monkeypatch.delenv('ACCELERATE_USE_CPU', raising=False)
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: 'cuda')
    assert usable_dtype(torch.bfloat16) == torch.bfloat16


@pytest.mark.parametrize('bf16', [False, True])
def test_the_precision_is_that_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    pretended_cpu(monkeypatch, bf16)
    assert has_bf16('cpu') == bf16
    assert not has_bf16('mps')
    assert resolve_precision('auto') == ('bf16' if bf16 else 'fp32')
    half = torch.bfloat16 if bf16 else torch.float32
    assert usable_dtype(torch.bfloat16) == half
    for dtype in (torch.float32, torch.float16):
        assert usable_dtype(dtype) == dtype


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_what_is_asked_for_is_what_is_done(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    for bf16 in (False, True):
        pretended_cpu(monkeypatch, bf16)
        assert resolve_precision(precision) == precision
    assert DTYPES[precision].itemsize == {'fp32': 4, 'bf16': 2}[precision]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'precision' .* \(got 'fp16'\)"):
        resolve_precision('fp16')


def test_an_accelerator_may_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('ACCELERATE_USE_CPU', raising=False)
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: 'cuda')
    assert default_device() == 'cuda'
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    assert default_device() == 'cpu'
