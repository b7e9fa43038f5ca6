"""Scores against an item table: equal to the plain forms, without their memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hellm_pyg.nn import SoftTargets
from hellm_pyg.nn.scoring import (
    DENSE_RATIO,
    candidate_scores,
    inner_products,
    table_cross_entropy,
)

# Items of a table that is scored whole, and of one whose candidates are gathered.
SIZES = (7, DENSE_RATIO + 1)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out


class Copies(TorchDispatchMode):
    """Counts the tensors of some size or above that are no views of others."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.number = numel, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.numel:
            given = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
            memory = out.untyped_storage().data_ptr()
            self.number += memory not in [x.untyped_storage().data_ptr() for x in given]
        return out


def _inputs(
    num_targets: int, num_items: int, dim: int = 5, dtype: torch.dtype = torch.double
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(num_targets, dim, dtype=dtype, requires_grad=True)
    table = torch.randn(num_items, dim, dtype=dtype, requires_grad=True)
    return x, table, torch.randint(num_items, (num_targets,))


@given(num_queries=st.integers(0, 5), num_items=st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_inner_products(num_queries: int, num_items: int) -> None:
    x, table, _ = _inputs(num_queries, max(num_items, 1))
    table = table[:num_items]
    scores = inner_products(x, table)
    expected = x @ table.t()
    torch.testing.assert_close(scores, expected)
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad((weight * scores).sum(), [x, table])
    plain = torch.autograd.grad((weight * expected).sum(), [x, table])
    torch.testing.assert_close(grads, plain)


def test_rows_of_scores_are_aligned() -> None:
    assert inner_products(torch.ones(2, 3), torch.ones(37, 3)).stride() == (48, 1)


@given(
    num_targets=st.integers(1, 20),
    num_items=st.integers(1, 12),
    chunk_size=st.integers(1, 25),
)
@settings(max_examples=40, deadline=None)
def test_cross_entropy_equals_the_plain_form(
    num_targets: int, num_items: int, chunk_size: int
) -> None:
    x, table, target = _inputs(num_targets, num_items)
    loss = table_cross_entropy(x, table, target, chunk_size)
    expected = F.cross_entropy(x @ table.t(), target)
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(3 * loss, [x, table])
    torch.testing.assert_close(grads, torch.autograd.grad(3 * expected, [x, table]))


@given(
    num_targets=st.integers(1, 9),
    num_items=st.integers(1, 7),
    chunk_size=st.integers(1, 10) | st.none(),
    num_pairs=st.integers(0, 30),
)
@settings(max_examples=40, deadline=None)
def test_cross_entropy_with_bias_and_hidden_items(
    num_targets: int, num_items: int, chunk_size: int | None, num_pairs: int
) -> None:
    x, table, target = _inputs(num_targets, num_items)
    bias = torch.randn(num_items, dtype=torch.double, requires_grad=True)
    row = torch.randint(num_targets, (num_pairs,)).sort().values
    col = torch.randint(num_items, (num_pairs,))
    loss = table_cross_entropy(
        x, table, target, chunk_size, bias=bias, hidden=(row, col)
    )
    hide = torch.zeros(num_targets, num_items, dtype=torch.bool)
    hide[row, col] = True
    hide[torch.arange(num_targets), target] = False
    logits = (x @ table.t() + bias).masked_fill(hide, -torch.inf)
    expected = F.cross_entropy(logits, target)
    torch.testing.assert_close(loss, expected)
    leaves = [x, table, bias]
    grads = torch.autograd.grad(3 * loss, leaves)
    torch.testing.assert_close(grads, torch.autograd.grad(3 * expected, leaves))


@given(
    num_targets=st.integers(1, 9),
    num_items=st.integers(1, 7),
    chunk_size=st.integers(1, 10) | st.none(),
    weight=st.floats(0.01, 1),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_cross_entropy_with_soft_targets(
    num_targets: int,
    num_items: int,
    chunk_size: int | None,
    weight: float,
    data: st.DataObject,
) -> None:
    x, table, target = _inputs(num_targets, num_items)
    bias = torch.randn(num_items, dtype=torch.double, requires_grad=True)
    number = num_targets + data.draw(st.integers(0, 3))  # of which some do not count
    kept = torch.randperm(number)[:num_targets].sort().values
    p = torch.randn(number, num_items, dtype=torch.double).softmax(dim=1)
    soft = SoftTargets(weight, kept, lambda index: p[index])
    loss = table_cross_entropy(x, table, target, chunk_size, bias=bias, soft=soft)
    wanted = (1 - weight) * F.one_hot(target, num_items) + weight * p[kept]
    expected = F.cross_entropy(x @ table.t() + bias, wanted)
    torch.testing.assert_close(loss, expected)
    leaves = [x, table, bias]
    grads = torch.autograd.grad(3 * loss, leaves)
    torch.testing.assert_close(grads, torch.autograd.grad(3 * expected, leaves))


def test_soft_targets_that_do_not_fit() -> None:
    x, table, target = _inputs(3, 4)
    p = torch.full((3, 4), 0.25)
    soft = SoftTargets(0.5, torch.arange(3), lambda index: p[index])
    pair = torch.tensor([0]), torch.tensor([1])
    with pytest.raises(ValueError, match=r"'soft' gives weight .*candidates='all'"):
        table_cross_entropy(x, table, target, hidden=pair, soft=soft)
    fewer = soft.of(torch.tensor([True, False, True]))
    with pytest.raises(ValueError, match=r"'soft' needs one .* \(got \[2\] for \[3\]"):
        table_cross_entropy(x, table, target, soft=fewer)


def test_cross_entropy_of_frozen_tables_and_without_grad() -> None:
    x, table, target = _inputs(5, 4)
    loss = table_cross_entropy(x, table.detach(), target)
    loss.backward()
    assert x.grad is not None
    with torch.no_grad():
        again = table_cross_entropy(x, table, target)
    assert not again.requires_grad
    torch.testing.assert_close(again, loss.detach())


def test_cross_entropy_under_autocast_keeps_fp32_logits() -> None:
    x, table, target = _inputs(200, 50, 32, torch.float)
    expected = F.cross_entropy(x @ table.t(), target)
    wanted = torch.autograd.grad(expected, (x, table))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = table_cross_entropy(x, table, target)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, table)), wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_gradients_by_finite_differences() -> None:
    x, table, target = _inputs(6, 4)
    assert torch.autograd.gradcheck(
        lambda x, table: table_cross_entropy(x, table, target, 4), (x, table)
    )


@pytest.mark.parametrize('num_items', SIZES)
def test_gradients_of_candidates_by_finite_differences(num_items: int) -> None:
    x, table, target = _inputs(6, num_items)
    candidate = target.unsqueeze(1)
    assert torch.autograd.gradcheck(
        lambda x, table: candidate_scores(x, table, candidate, 4), (x, table)
    )


def test_cross_entropy_of_extreme_logits_is_finite() -> None:
    x = torch.tensor([[1e3, 0.0]], requires_grad=True)
    table = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.9, 0.0]])
    loss = table_cross_entropy(x, table, torch.tensor([1]))
    assert loss.item() == pytest.approx(2000)
    (grad,) = torch.autograd.grad(loss, x)
    assert grad[0, 0].item() == pytest.approx(2)


def test_cross_entropy_of_nothing_is_zero() -> None:
    x, table, target = _inputs(0, 3)
    loss = table_cross_entropy(x, table, target)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(table.grad, torch.zeros_like(table))


@given(
    num_items=st.sampled_from([*SIZES, 6 * DENSE_RATIO + 1]),
    num_targets=st.integers(1, 12),
    num_candidates=st.integers(1, 6),
    chunk_size=st.integers(1, 15),
)
@settings(max_examples=30, deadline=None)
def test_candidate_scores_equal_the_gathered_form(
    num_items: int, num_targets: int, num_candidates: int, chunk_size: int
) -> None:
    x, table, _ = _inputs(num_targets, num_items)
    candidate = torch.randint(num_items, (num_targets, num_candidates))
    out = candidate_scores(x, table, candidate, chunk_size)
    expected = (table[candidate] * x.unsqueeze(1)).sum(dim=-1)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad((out * weight).sum(), [x, table]),
        torch.autograd.grad((expected * weight).sum(), [x, table]),
    )


@pytest.mark.parametrize('kind', ['table', 'candidates', 'gathered'])
def test_memory_is_that_of_a_chunk(kind: str) -> None:
    num_targets, num_items, dim, chunk_size = 300, 400, 4, 10
    x, table, target = _inputs(num_targets, num_items, dim)
    num_candidates = 5 if kind == 'gathered' else 40
    candidate = torch.randint(num_items, (num_targets, num_candidates))
    with LargestTensor() as largest:
        if kind == 'table':
            table_cross_entropy(x, table, target, chunk_size).backward()
        else:
            candidate_scores(x, table, candidate, chunk_size).sum().backward()
    bound = max(chunk_size * num_items, num_targets * num_candidates)
    assert largest.numel <= bound


@pytest.mark.parametrize(('num_items', 'expected'), [(401, 1), (400, 0)])
@pytest.mark.parametrize('kind', ['table', 'candidates'])
def test_a_table_wider_than_a_chunk_is_copied_once(
    kind: str, num_items: int, expected: int
) -> None:
    x, table, target = _inputs(300, num_items, dim=20)
    candidate = target.unsqueeze(1).expand(-1, num_items // DENSE_RATIO + 1)
    with torch.no_grad(), Copies(table.numel()) as copies:
        if kind == 'table':
            table_cross_entropy(x, table, target, 10)
        else:
            candidate_scores(x, table, candidate, 10)
    assert copies.number == expected


@pytest.mark.parametrize('num_items', SIZES)
def test_gradients_of_candidates_under_autocast_are_in_fp32(num_items: int) -> None:
    x, table, target = _inputs(6, num_items, 40, torch.float)
    grads = []
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            scores = candidate_scores(x, table, target.unsqueeze(1), 4)
            grads.append(torch.autograd.grad(scores.sum(), [x, table]))
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize('kind', ['table', 'candidates'])
def test_autocast_keeps_the_type_of_the_table(kind: str) -> None:
    x, table, target = _inputs(40, 9, dtype=torch.float)
    candidate = target.unsqueeze(1)
    states = x.bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        if kind == 'table':
            loss = table_cross_entropy(states, table, target, 16)
            expected = F.cross_entropy(x @ table.t(), target)
        else:
            loss = candidate_scores(states, table, candidate, 16).float().mean()
            expected = (x * table[target]).sum(dim=-1).mean()
    grads = torch.autograd.grad(loss, [x, table])
    assert [grad.dtype for grad in grads] == [torch.float, torch.float]
    torch.testing.assert_close(loss, expected.float(), atol=0.02, rtol=0.02)
    plain = torch.autograd.grad(expected, [x, table])
    torch.testing.assert_close(grads, plain, atol=0.02, rtol=0.02)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_scores_of_many_items_do_not_tie(dtype: torch.dtype) -> None:
    x, table, _ = _inputs(3, 5000, 16, torch.float)
    candidate = torch.arange(5000).expand(3, -1)
    expected = (x @ table.t()).detach()
    with torch.autocast('cpu', torch.bfloat16):
        for scores in (
            inner_products(x, table),
            candidate_scores(x, table, candidate),
        ):
            assert scores.dtype == torch.float
            torch.testing.assert_close(scores.detach(), expected)
    low = inner_products(x.to(dtype), table.to(dtype))
    assert low.dtype == torch.float
    assert all(row.unique().numel() > 4900 for row in low)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('num_targets', [10, 64, 65])
def test_cross_entropy_over_a_table_of_half_precision(
    num_targets: int, dtype: torch.dtype
) -> None:
    x, table, target = _inputs(num_targets, 30, 8, torch.float)
    loss = table_cross_entropy(x.to(dtype), table.to(dtype), target, 40)
    expected = F.cross_entropy(
        x.to(dtype).float() @ table.to(dtype).float().t(), target
    )
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, [x, table])
    wanted = torch.autograd.grad(expected, [x, table])
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_bad_input() -> None:
    x, table, target = _inputs(4, 3)
    with pytest.raises(ValueError, match=r"'x' and 'table'.*got \[4, 4\]"):
        table_cross_entropy(x[:, :4], table, target)
    with pytest.raises(ValueError, match=r"'target'.*got \[3\] for 4 rows"):
        table_cross_entropy(x, table, target[:3])
    with pytest.raises(ValueError, match=r"'bias' needs .* \(got \[3, 1\] for 3 rows"):
        table_cross_entropy(x, table, target, bias=torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"'chunk_size'.*got 0"):
        table_cross_entropy(x, table, target, 0)
    with pytest.raises(ValueError, match=r"'candidate' must be a matrix"):
        candidate_scores(x, table, target)


@pytest.mark.parametrize('wrong', [-100, -1, 3, 15])  # a table has 16 rows inside
def test_rows_that_a_table_lacks_are_refused(wrong: int) -> None:
    x, table, target = _inputs(4, 3)
    index = target.clone()
    index[2] = wrong
    match = rf'needs to lie in \[0, 3\), .* values from .*{wrong}'
    with pytest.raises(ValueError, match=f"'target' {match}"):
        table_cross_entropy(x, table, index)
    with pytest.raises(ValueError, match=f"'candidate' {match}"):
        candidate_scores(x, table, index.unsqueeze(1))
    zero = torch.zeros_like(index)
    with pytest.raises(ValueError, match=f"'hidden\\[1\\]' {match}"):
        table_cross_entropy(x, table, target, hidden=(zero, index))


def test_hidden_pairs_ascend() -> None:
    x, table, target = _inputs(4, 3)
    pairs = torch.tensor([2, 1]), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"'hidden' needs .* ascending"):
        table_cross_entropy(x, table, target, hidden=pairs)


def test_a_lesson_has_a_column_an_item() -> None:
    x, table, target = _inputs(4, 3)
    soft = SoftTargets(0.5, torch.arange(4), lambda index: torch.ones(len(index), 1))
    with pytest.raises(
        ValueError, match=r"'soft.probability' .* \[4, 3\].*got \[4, 1\]"
    ):
        table_cross_entropy(x, table, target, soft=soft)


def test_a_second_derivative_raises_where_it_would_lack_a_term() -> None:
    x, table, target = _inputs(4, 3)
    for loss in (
        table_cross_entropy(x, table, target),
        candidate_scores(x, table, target.unsqueeze(1)).sum(),
    ):
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match='differentiated only once'):
            torch.autograd.grad(loss + grad.square().sum(), table)


def test_states_of_more_dimensions_have_scores_of_as_many() -> None:
    x, table, _ = _inputs(6, 5)
    stacked = inner_products(x.view(2, 3, -1), table)
    torch.testing.assert_close(stacked, (x @ table.t()).view(2, 3, 5))
