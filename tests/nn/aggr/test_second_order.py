import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hellm_pyg.nn import SecondOrderAggregation


def naive(x: Tensor, index: Tensor, num_sets: int) -> Tensor:
    outer = x.unsqueeze(2) * x.unsqueeze(1)
    out = x.new_zeros(num_sets, *outer.shape[1:]).index_add(0, index, outer)
    return out.flatten(1)


@given(
    size=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_equals_sum_of_outer_products(size: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    index = torch.repeat_interleave(torch.tensor(size))
    x = torch.randn(index.numel(), 3, dtype=torch.double, requires_grad=True)
    expected = naive(x, index, len(size))
    aggr = SecondOrderAggregation(3)

    out = aggr(x, index, dim_size=len(size))
    torch.testing.assert_close(out, expected)
    ptr = torch.tensor([0, *size]).cumsum(0)
    torch.testing.assert_close(aggr(x, ptr=ptr), expected)
    perm = torch.randperm(index.numel())
    shuffled = aggr(x[perm], index[perm], dim_size=len(size))
    torch.testing.assert_close(shuffled, expected)

    weight = torch.randn_like(out)
    got, want = (
        torch.autograd.grad((y * weight).sum(), x)[0] for y in (shuffled, expected)
    )
    torch.testing.assert_close(got, want)


def test_trainable_map() -> None:
    aggr = SecondOrderAggregation(6, rank=2)
    assert str(aggr) == 'SecondOrderAggregation(6, rank=2)'
    assert aggr.weight.shape == (6, 2)
    assert aggr.out_channels == 4
    x, index = torch.randn(5, 6), torch.tensor([2, 0, 0, 2, 0])

    out = aggr(x, index)
    assert out.shape == (3, 4)
    for i in range(3):
        y = x[index == i] @ aggr.weight
        torch.testing.assert_close(out[i], (y.t() @ y).flatten())
    out.sum().backward()
    assert aggr.weight.grad.abs().sum() > 0

    before = aggr.weight.clone()
    aggr.reset_parameters()
    assert not torch.equal(aggr.weight, before)


def test_gradcheck() -> None:
    aggr = SecondOrderAggregation(3, rank=2).double()
    index = torch.tensor([0, 2, 2, 0, 2])
    x = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: aggr(x, index), (x, aggr.weight))


def test_without_rank_has_no_parameters() -> None:
    aggr = SecondOrderAggregation(4)
    assert list(aggr.parameters()) == []
    assert aggr.out_channels == 16
    assert str(aggr) == 'SecondOrderAggregation(4, rank=None)'


def test_empty_sets_give_zeros() -> None:
    aggr, x = SecondOrderAggregation(2), torch.ones(3, 2)
    out = aggr(x, torch.tensor([1, 1, 3]), dim_size=6)
    assert out[[0, 2, 4, 5]].abs().sum() == 0
    assert out[1].tolist() == [2, 2, 2, 2]
    none = aggr(torch.ones(0, 2), torch.tensor([], dtype=torch.long), dim_size=2)
    assert none.tolist() == [[0] * 4] * 2
    assert aggr(torch.ones(0, 2), ptr=torch.tensor([0])).shape == (0, 4)


def test_all_elements_are_one_set_by_default() -> None:
    x = torch.randn(5, 3)
    out = SecondOrderAggregation(3)(x)
    torch.testing.assert_close(out, (x.t() @ x).view(1, -1))


def test_result_does_not_depend_on_other_sets() -> None:
    aggr, x = SecondOrderAggregation(8), torch.randn(11, 8)
    alone = aggr(x[:3], torch.zeros(3, dtype=torch.long))
    index = torch.tensor([0] * 3 + [1] * 7 + [2])
    torch.testing.assert_close(aggr(x, index)[:1], alone, rtol=0, atol=1e-6)
    x[3:] = float('nan')
    torch.testing.assert_close(aggr(x, index)[:1], alone, rtol=0, atol=1e-6)


def test_memory_stays_below_that_of_outer_products() -> None:
    channels, num_elements = 64, 4096
    index = torch.zeros(num_elements, dtype=torch.long)
    index[-500:] = torch.arange(1, 501)
    held = 0

    def pack(saved: Tensor) -> Tensor:
        nonlocal held
        held = max(held, saved.numel())
        return saved

    x = torch.randn(num_elements, channels, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        SecondOrderAggregation(channels)(x, index)
    assert 0 < held <= 2 * num_elements * channels


def test_autocast() -> None:
    aggr, x = SecondOrderAggregation(4, rank=3), torch.randn(6, 4)
    index = torch.tensor([0, 0, 2, 2, 2, 2])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = aggr(x, index)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), aggr(x, index), rtol=0.05, atol=0.05)


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match=r"'in_channels' .*got 0"):
        SecondOrderAggregation(0)
    with pytest.raises(ValueError, match=r"'rank' .*got -1"):
        SecondOrderAggregation(3, rank=-1)
    aggr = SecondOrderAggregation(3)
    with pytest.raises(ValueError, match=r"'in_channels' = 3.*got 4"):
        aggr(torch.randn(2, 4))
    with pytest.raises(ValueError, match="'dim_size'"):
        aggr(torch.randn(2, 3), torch.tensor([0, 5]), dim_size=3)
    with pytest.raises(ValueError, match='two-dimensional'):
        aggr(torch.randn(2, 2, 3))


@pytest.mark.parametrize(
    'ptr', [[0, 2, 4], [1, 2, 6], [0, 2, 9], [], [0, 5, 3, 6], [0, -3, 6], [0, 9, 6]]
)
def test_refuses_pointers_that_leave_elements_out(ptr: list[int]) -> None:
    with pytest.raises(ValueError, match=r"'ptr' needs to ascend from 0 to .* 6 \(got"):
        SecondOrderAggregation(4)(torch.randn(6, 4), ptr=torch.tensor(ptr).long())


@pytest.mark.parametrize('index', [[0, 0, 1, 1], [-1, 0, 0, 0, 1, 1]])
def test_refuses_an_index_of_other_elements(index: list[int]) -> None:
    with pytest.raises(ValueError, match=r"'index' needs a set, from 0, .* 6 elements"):
        SecondOrderAggregation(4)(torch.randn(6, 4), torch.tensor(index))
