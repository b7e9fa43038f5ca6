from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hellm_pyg.nn import NeighborSmoothing
from hellm_pyg.nn.scoring import table_cross_entropy


def parts(
    seed: int = 0, num_items: int = 7, num_targets: int = 5, k: int = 3
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (num_targets, 4), (num_items, 4), (num_items,)
    x, table, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    target = torch.randint(num_items, (num_targets,), generator=generator)
    # Of any items: what is a neighbour twice, and itself where one is missing.
    neighbor = torch.randint(num_items, (num_items, k), generator=generator)
    return x, table, bias, target, neighbor


def soft_targets(neighbor: Tensor, target: Tensor, weight: float) -> Tensor:
    q = torch.zeros(len(target), len(neighbor), dtype=torch.float64)
    for row, item in enumerate(target.tolist()):
        q[row, item] += 1 - weight
        for near in neighbor[item].tolist():
            q[row, near] += weight / neighbor.size(1)
    return q


@given(
    seed=st.integers(0, 999),
    num_items=st.integers(2, 9),
    num_targets=st.integers(1, 6),
    k=st.integers(1, 8),
    weight=st.floats(0, 0.9),
    with_bias=st.booleans(),
)
def test_completes_the_cross_entropy_with_soft_targets(
    seed: int, num_items: int, num_targets: int, k: int, weight: float, with_bias: bool
) -> None:
    x, table, bias, target, neighbor = parts(seed, num_items, num_targets, k)
    values = [x, table, bias] if with_bias else [x, table]
    smoothing = NeighborSmoothing(neighbor, weight)
    found, expected = [], []
    for out, dense in ((found, False), (expected, True)):
        own = [value.clone().requires_grad_() for value in values]
        own_bias = own[2] if with_bias else None
        if dense:
            scores = own[0] @ own[1].t()
            scores = scores if own_bias is None else scores + own_bias
            loss = F.cross_entropy(scores, soft_targets(neighbor, target, weight))
        else:
            loss = table_cross_entropy(own[0], own[1], target, bias=own_bias)
            loss = loss + smoothing(own[0], own[1], target, own_bias)
        loss.backward()
        out += [loss.detach(), *(value.grad for value in own)]
    torch.testing.assert_close(found, expected)


def test_gradients() -> None:
    x, table, bias, target, neighbor = parts()
    values = [value.requires_grad_() for value in (x, table, bias)]
    smoothing = NeighborSmoothing(neighbor, 0.3)
    assert torch.autograd.gradcheck(
        lambda x, table, bias: smoothing(x, table, target, bias), values
    )


def test_order_of_neighbors_and_targets_does_not_matter() -> None:
    x, table, bias, target, neighbor = parts()
    expected = NeighborSmoothing(neighbor)(x, table, target, bias)
    order = torch.randperm(len(target))
    found = NeighborSmoothing(neighbor.flip(1))(x[order], table, target[order], bias)
    torch.testing.assert_close(found, expected)


def test_names_of_items_do_not_matter() -> None:
    x, table, bias, target, neighbor = parts()
    expected = NeighborSmoothing(neighbor)(x, table, target, bias)
    order = torch.randperm(len(table))
    name = order.argsort()
    found = NeighborSmoothing(name[neighbor[order]])(
        x, table[order], name[target], bias[order]
    )
    torch.testing.assert_close(found, expected)


def test_an_item_that_has_itself_keeps_its_weight() -> None:
    x, table, bias, target, _ = parts()
    own = torch.arange(len(table))[:, None].repeat(1, 3)
    found = NeighborSmoothing(own, 0.5)(x, table, target, bias)
    torch.testing.assert_close(found, torch.zeros((), dtype=torch.float64))


def test_neighbors_travel_with_the_device_but_not_in_the_state() -> None:
    smoothing = NeighborSmoothing(parts()[4].int())
    assert smoothing.neighbor.dtype == torch.int64
    assert not smoothing.state_dict()
    assert smoothing.to('meta').neighbor.is_meta


@pytest.mark.parametrize(
    ('neighbor', 'weight', 'message'),
    [
        (torch.zeros(3), 0.1, r"'neighbor' needs the shape \[I, k\].*got \[3\]"),
        (torch.zeros(3, 0).long(), 0.1, "'neighbor' needs the shape"),
        (torch.zeros(3, 2), 0.1, 'integers .*float32'),
        (torch.zeros(3, 2, dtype=torch.bool), 0.1, 'integers .*bool'),
        (torch.full((3, 1), 3), 0.1, 'items from 0 to 2 .*got from 3 to 3'),
        (torch.full((3, 1), -1), 0.1, 'items from 0 to 2'),
        (torch.zeros(3, 1).long(), 1.0, r"'weight' needs to lie in \[0, 1\)"),
        (torch.zeros(3, 1).long(), float('nan'), "'weight' needs to lie"),
    ],
)
def test_bad_arguments(neighbor: Tensor, weight: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeighborSmoothing(neighbor, weight)


def test_a_table_of_other_items_is_refused() -> None:
    x, table, bias, target, neighbor = parts()
    smoothing = NeighborSmoothing(neighbor)
    with pytest.raises(ValueError, match=r"'table' needs a row for each of 7 items"):
        smoothing(x, table[:-1], target, bias)
    for wrong in (x[:1], x[:, :1]):  # which would broadcast
        with pytest.raises(ValueError, match=r"'x' needs a row for each .* 4 \(got"):
            smoothing(wrong, table, target, bias)
    with pytest.raises(ValueError, match=r"'bias' needs one entry .* \(got \[7, 1\]"):
        smoothing(x, table, target, bias.unsqueeze(1))
    with pytest.raises(ValueError, match=r"'target' needs to lie in \[0, 7\)"):
        smoothing(x, table, target - 7, bias)


def test_no_targets_have_no_loss() -> None:
    x, table, bias, target, neighbor = parts()
    found = NeighborSmoothing(neighbor)(x[:0], table, target[:0], bias)
    assert found == table_cross_entropy(x[:0], table, target[:0], bias=bias) == 0


def test_repr() -> None:
    assert repr(NeighborSmoothing(parts()[4], 0.3)) == (
        'NeighborSmoothing(7, k=3, weight=0.3)'
    )
