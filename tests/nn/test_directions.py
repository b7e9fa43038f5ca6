"""Unit vectors: the plain form, and rows that have no direction."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hellm_pyg.nn.directions import directions

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize('dtype', DTYPES)
def test_rows_have_unit_length_whatever_their_size(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 40).to(dtype)
    x[1] *= 1e4  # their squares exceed 16 bits
    x[2] *= 1e-4
    out = directions(x)
    assert out.dtype == dtype
    expected = x.double() / x.double().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(out, expected.to(dtype))


@pytest.mark.parametrize('dtype', DTYPES)
def test_zeros_have_no_direction_and_no_gradient(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    out = directions(x)
    torch.testing.assert_close(out, torch.tensor([[0, 0], [0.6, 0.8]]).to(dtype))
    (grad,) = torch.autograd.grad(out[:, 0].sum(), x)
    torch.testing.assert_close(
        grad, torch.tensor([[0, 0], [0.128, -0.096]]).to(dtype), rtol=0.01, atol=1e-4
    )


def test_values_and_gradients_in_fp32_are_those_of_torch() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(50, 64, requires_grad=True), torch.randn(50, 64)
    found, expected = directions(x), F.normalize(x, dim=-1)
    assert torch.equal(found, expected)
    assert torch.equal(
        *(torch.autograd.grad((weight * y).sum(), x)[0] for y in (found, expected))
    )
