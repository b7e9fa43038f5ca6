import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex

from hellm_pyg.data import NegativeSampler
from tests.devices import DEVICES

SETS = st.lists(st.sets(st.integers(0, 8), max_size=8), min_size=1, max_size=6)


def edges(sets):
    pairs = [(user, item) for user, items in enumerate(sets) for item in items]
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2).t().contiguous()


@given(SETS, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_negatives_lie_outside_the_history(sets, seed):
    edge_index = edges(sets)
    shuffled = edge_index[:, torch.randperm(edge_index.size(1))]
    sampler = NegativeSampler(shuffled, len(sets), 9)
    user = torch.arange(len(sets)).repeat(3)
    out = sampler.sample(user, 7, torch.Generator().manual_seed(seed))
    assert out.shape == (user.numel(), 7)
    for row, items in zip(user.tolist(), out.tolist(), strict=True):
        assert set(items) <= set(range(9)) - sets[row]


def test_negatives_are_uniform_over_the_other_items():
    sets = [{0, 1, 8}, set(), {3, 4, 5, 6, 7, 8}, set(range(9)) - {5}]
    sampler = NegativeSampler(edges(sets), len(sets), 9)
    num_draws = 20_000
    out = sampler.sample(torch.arange(4), num_draws, torch.Generator().manual_seed(0))
    for row, items in enumerate(sets):
        count = torch.bincount(out[row], minlength=9).double()
        free = torch.tensor([item not in items for item in range(9)])
        expected = num_draws / int(free.sum())
        assert count[~free].sum() == 0
        chi2 = ((count[free] - expected) ** 2 / expected).sum()
        assert chi2 < 27  # the 99.9 % quantile for 8 degrees of freedom is 26.1


def test_duplicates_and_edge_index_kinds_agree():
    edge_index = edges([{1, 2}, {0, 4}])
    doubled = torch.cat([edge_index, edge_index], dim=1)
    draws = [
        NegativeSampler(kind, 2, 6).sample(
            torch.tensor([0, 1]), 50, torch.Generator().manual_seed(3)
        )
        for kind in (edge_index, doubled, EdgeIndex(edge_index, sparse_size=(2, 6)))
    ]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_generator_decides():
    sampler = NegativeSampler(edges([{1}]), 1, 50)
    user = torch.zeros(20, dtype=torch.long)
    first = sampler.sample(user, 2, torch.Generator().manual_seed(1))
    assert torch.equal(first, sampler.sample(user, 2, torch.Generator().manual_seed(1)))
    other = sampler.sample(user, 2, torch.Generator().manual_seed(2))
    assert not torch.equal(first, other)


@pytest.mark.parametrize('device', DEVICES)
def test_draws_are_the_same_on_every_device(device):
    edge_index, user = edges([{1, 2}, {0, 4}]), torch.tensor([1, 0, 1])
    draws = [
        NegativeSampler(edge_index.to(where), 2, 6)
        .sample(user.to(where), 50, torch.Generator().manual_seed(3))
        .to(device)
        for where in ('cpu', device)
    ]
    assert torch.equal(*draws)


def test_user_with_every_item():
    with pytest.raises(ValueError, match=r'no negative item to 2 of 3 users'):
        NegativeSampler(edges([{0, 1}, {0}, {0, 1}]), 3, 2)


@pytest.mark.parametrize('pair', [(3, 0), (-1, 0), (0, 2), (0, -1)])
def test_ids_out_of_range_are_refused(pair):
    with pytest.raises(ValueError, match=r"'edge_index\[[01]\]' needs to lie in \[0, "):
        NegativeSampler(torch.tensor(pair).view(2, 1), 3, 2)
    sampler = NegativeSampler(edges([{0}, {1}, set()]), 3, 2)
    for user in (-1, 3):
        with pytest.raises(ValueError, match=r"'user' needs to lie in \[0, 3\)"):
            sampler.sample(torch.tensor([0, user]), 4)


def test_repr():
    assert str(NegativeSampler(edges([{1}]), 1, 5)) == (
        'NegativeSampler(1 users, 5 items)'
    )
