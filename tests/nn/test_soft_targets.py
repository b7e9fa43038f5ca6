from __future__ import annotations

import pytest
import torch

from hellm_pyg.nn import SoftTargets


@pytest.mark.parametrize('weight', [0.0, -0.1, 1.1, float('nan')])
def test_bad_weights(weight: float) -> None:
    with pytest.raises(ValueError, match=r"'weight' needs to lie in \(0, 1\] \(got"):
        SoftTargets(weight, torch.arange(3), lambda index: index)


def test_asks_for_those_that_are_left() -> None:
    table = torch.rand(6, 4)
    soft = SoftTargets(0.3, torch.arange(6), lambda index: table[index])
    assert torch.equal(soft[2:4], table[2:4])
    kept = torch.tensor([True, False, True, True, False, True])
    left = soft.of(kept)
    assert torch.equal(left[1:3], table[kept][1:3])
    again = left.of(torch.tensor([False, True, True, True]))
    assert torch.equal(again[:2], table[[2, 3]])
    assert again.weight == 0.3
