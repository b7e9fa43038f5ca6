from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hellm_pyg.nn.standardize import standardize


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 4),
    items=st.integers(2, 9),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-100, 100),
)
def test_equals_its_formula_whatever_the_scale(
    seed: int, rows: int, items: int, scale: float, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, items, generator=generator, dtype=torch.double)
    mean = scores.mean(dim=1, keepdim=True)
    expected = (scores - mean) / ((scores - mean) ** 2).mean(dim=1, keepdim=True).sqrt()
    found = standardize((scale * scores + shift).float())
    assert found.dtype == torch.float
    # Of a large shift, the scores themselves have lost so many digits.
    tolerance = 1e-4 + 1e-5 * abs(shift) / scale
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=1e-3)


@pytest.mark.parametrize('value', [0.0, 0.1, -3.3, 1e30, 1e-30])
def test_equal_scores_become_zero(value: float) -> None:
    scores = torch.full((2, 1001), value)
    scores[1, 7] += 1
    before = scores.clone()
    found = standardize(scores)
    assert torch.equal(found[0], torch.zeros(1001))
    assert found.isfinite().all()
    assert torch.equal(scores, before)
    assert torch.equal(standardize(scores[:, :1]), torch.zeros(2, 1))
    assert standardize(scores[:0]).shape == (0, 1001)


@pytest.mark.parametrize('scale', [1e-42, 1e-30, 1e-22, 1.0, 1e20, 1e37])
def test_sizes_whose_squares_overflow_or_vanish(scale: float) -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 5.0], [4.0, 4.0, 4.0, 4.0]])
    found = standardize(scale * scores)
    expected = (scores[0] - 2.75) / scores[0].std(correction=0)
    torch.testing.assert_close(found[0], expected, rtol=2e-3, atol=0)
    assert torch.equal(found[1], torch.zeros(4))


def test_an_outlier_leaves_the_others_apart() -> None:
    scores = torch.linspace(1, 2, 1001).unsqueeze(0)
    scores[0, 0] = -1e5
    assert (standardize(scores)[0].diff() > 0).all()


@pytest.mark.parametrize('bad', ['nan', 'inf', '-inf'])
def test_scores_that_are_not_finite_are_refused(bad: str) -> None:
    scores = torch.rand(3, 5)
    scores[1, 2] = float(bad)
    with pytest.raises(ValueError, match=r"^'graph' needs finite .* in 1 of 3 rows"):
        standardize(scores, 'graph')
