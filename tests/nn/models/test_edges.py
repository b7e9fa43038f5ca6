"""Operations on edges against dense matrices, and values that are kept."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from hellm_pyg.nn.models.edges import Edges
from hellm_pyg.nn.models.kept import Kept
from tests.devices import DEVICES

R, C, D = 5, 7, 3


def make(density: float = 0.4) -> tuple[Edges, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(R, C, generator=generator) < density
    mask[2] = False
    mask[:, 3] = False
    return Edges.from_pairs(mask.nonzero().t(), R, C), mask


def test_columns_of_a_row_may_have_any_order() -> None:
    edges, mask = make()
    row, col = mask.nonzero().t()
    order = (row * C - col).argsort()
    other = Edges.from_pairs(torch.stack([row, col])[:, order], R, C)
    x, y = vectors(R), vectors(C)
    dot = edges.dot(x, y)
    assert not torch.equal(order, order.sort().values)
    torch.testing.assert_close(other.dot(x, y), dot[order])
    torch.testing.assert_close(other.sum(dot[order], y), edges.sum(dot, y))
    sums = [one.sum(w, x, True) for one, w in ((other, dot[order]), (edges, dot))]
    torch.testing.assert_close(*sums)


def vectors(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, D, dtype=torch.double, generator=generator)
    return x.requires_grad_()


def test_operations_equal_dense_ones() -> None:
    edges, mask = make()
    x, y = vectors(R), vectors(C)
    torch.testing.assert_close(edges.dot(x, y), (x @ y.t())[mask])
    weight = torch.randn(int(mask.sum()), dtype=torch.double)
    A = torch.zeros(R, C, dtype=torch.double).masked_scatter(mask, weight)
    torch.testing.assert_close(edges.sum(weight, y), A @ y)
    torch.testing.assert_close(edges.sum(weight, x, transpose=True), A.t() @ x)
    weight.requires_grad_()
    for function, inputs in (
        (edges.dot, (x, y)),
        (edges.sum, (weight, y)),
        (lambda w, z: edges.sum(w, z, transpose=True), (weight, x)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_operations_are_in_32_bits(dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(n, 300, generator=generator) for n in (R, C))
    edges, mask = make()
    weight = torch.randn(int(mask.sum()), generator=generator).to(dtype)
    A = torch.zeros(R, C).masked_scatter(mask, weight.float())
    edges = Edges(*(part.to(device) for part in edges))
    x, y, weight = (part.to(device, dtype).requires_grad_() for part in (x, y, weight))
    with torch.autocast(device, torch.bfloat16):
        dot, out = edges.dot(x, y), edges.sum(weight, y)
    (dot.sum() + out.sum()).backward()
    assert dot.dtype == x.grad.dtype == y.grad.dtype == weight.grad.dtype == dtype
    exact = (x.cpu().float() @ y.cpu().float().t())[mask].to(dtype)
    torch.testing.assert_close(dot.cpu(), exact)
    torch.testing.assert_close(out.cpu(), A @ y.cpu().float())


def test_no_edges() -> None:
    edges = Edges.from_pairs(torch.empty(2, 0, dtype=torch.long), R, C)
    x, y = vectors(R), vectors(C)
    weight = edges.dot(x, y)
    assert weight.shape == (0,)
    out = edges.sum(weight, y)
    assert torch.equal(out, torch.zeros(R, D, dtype=torch.double))
    out.sum().backward()
    assert not bool(y.grad.any())


def test_kept_values_follow_their_sources() -> None:
    kept: Kept[Tensor] = Kept()
    source, count = torch.ones(2), []

    def value() -> Tensor:
        count.append(1)
        return 2 * source

    with torch.inference_mode():
        first = kept.get([source, 1], value)
    assert not first.is_inference()
    assert kept.get([source, 1], value) is first
    kept.get([source, 2], value)
    kept.get([source.clone(), 2], value)
    kept.get([source], value)
    assert len(count) == 4
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        other.get([source], value)
    assert len(count) == 6
