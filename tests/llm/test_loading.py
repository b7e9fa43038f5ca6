from __future__ import annotations

import pytest
import torch

from hellm_pyg.llm.loading import resolved_dtype
from tests.devices import pretended_gpus


def test_the_precision_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended_gpus(monkeypatch, bf16=[True, False])
    assert resolved_dtype('auto', 'cuda') == torch.bfloat16
    assert resolved_dtype('auto', 'cuda:1') == torch.float32
    pretended_gpus(monkeypatch, bf16=[False, True])
    assert resolved_dtype('auto', 'cuda') == torch.float32
    assert resolved_dtype('auto', 'cuda:1') == torch.bfloat16
