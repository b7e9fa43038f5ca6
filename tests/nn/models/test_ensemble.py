from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data import SequenceBatch
from hellm_pyg.data.split import fold_in
from hellm_pyg.evaluation import evaluate, rank
from hellm_pyg.nn.models import Ensemble, ItemKNN, LightGCN, Popularity, SASRec
from hellm_pyg.transforms import LeaveOneOut, UserItemGraph
from tests.builders import rec_data
from tests.nn.models.batches import sequence_batch

USERS, ITEMS = 20, 16


class Given(torch.nn.Module):
    """Scores that are given, one row a user, and how often it was asked."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores
        self.encoded: list[HeteroData] = []
        self.scored = 0

    def encode(self, data: HeteroData) -> Tensor:
        self.encoded.append(data)
        return self.scores

    def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        self.scored += 1
        return encoded[batch.user]


def given(seed: int, num_items: int = ITEMS) -> Given:
    generator = torch.Generator().manual_seed(seed)
    return Given(3 * torch.randn(USERS, num_items, generator=generator) + seed)


@pytest.fixture
def data() -> HeteroData:
    return UserItemGraph()(LeaveOneOut()(rec_data(USERS, ITEMS, min_length=3)))


def trained() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        'seq': SASRec(ITEMS, 8, num_layers=1),
        'graph': LightGCN(USERS, ITEMS, 8),
        'floor': Popularity(USERS, ITEMS),
    }


def score(model: Ensemble, data: HeteroData, batch: SequenceBatch) -> Tensor:
    return model.eval().score(model.encode(data), batch)


def test_scores_are_the_formula(data: HeteroData) -> None:
    members = {name: given(seed) for seed, name in enumerate('abc')}
    weights = {'b': 0.3, 'a': 1.5, 'c': 0.1}  # in any order
    found = score(Ensemble(members, weights), data, sequence_batch([[1]] * USERS))
    expected = np.zeros((USERS, ITEMS))
    for name, member in members.items():
        own = member.scores.double().numpy()
        for u in range(USERS):
            expected[u] += weights[name] * (own[u] - own[u].mean()) / own[u].std()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert found.dtype == torch.float


def test_member_that_prefers_nothing_adds_nothing(data: HeteroData) -> None:
    one, flat = given(1), Given(torch.full((USERS, ITEMS), 0.1))
    batch = sequence_batch([[1]] * USERS)
    alone = score(Ensemble({'a': one}, {'a': 1.0}), data, batch)
    both = Ensemble({'flat': flat, 'a': one}, {'flat': 5.0, 'a': 1.0})
    assert torch.equal(score(both, data, batch), alone)
    only = score(Ensemble({'flat': flat}, {'flat': 1.0}), data, batch)
    assert torch.equal(only, torch.zeros(USERS, ITEMS))


def test_members_of_weight_zero_are_not_asked(data: HeteroData) -> None:
    used, idle = given(1), given(2)
    model = Ensemble({'idle': idle, 'used': used}, {'idle': 0.0, 'used': 2.0})
    score(model, data, sequence_batch([[1]] * USERS))
    assert (len(used.encoded), used.scored) == (1, 1)
    assert (len(idle.encoded), idle.scored) == (0, 0)


def test_order_of_members_does_not_matter(data: HeteroData) -> None:
    members = trained()
    members['floor'].fit(data)
    weights = {'seq': 1.0, 'graph': 0.4, 'floor': 0.1}
    batch = sequence_batch([[1, 2], [3], []], user=[0, -1, 4])
    first = score(Ensemble(members, weights), data, batch)
    turned = {name: members[name] for name in reversed(members)}
    second = score(Ensemble(turned, weights), data, batch)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)


def test_rows_do_not_depend_on_each_other_nor_do_unknown_users(
    data: HeteroData,
) -> None:
    members = trained()
    members['floor'].fit(data)
    model = Ensemble(members, {'seq': 1.0, 'graph': 0.4, 'floor': 0.1}).eval()
    encoded = model.encode(data)
    histories, user = [[1, 2, 5], [3], [], [1, 2]], [0, -1, 4, -1]
    together = model.score(encoded, sequence_batch(histories, user=user))
    for row, (history, one) in enumerate(zip(histories, user, strict=True)):
        alone = model.score(encoded, sequence_batch([history], user=[one]))
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)
    # A stranger reads as the mean of the history's vectors.
    graph = Ensemble({'graph': members['graph']}, {'graph': 1.0}).eval()
    items = members['graph'].encode(data)[1]
    raw = (items[[1, 2]].mean(dim=0) @ items.t()).detach()
    found = graph.score(graph.encode(data), sequence_batch([[1, 2]], user=[-1]))[0]
    expected = (raw - raw.mean()) / raw.std(correction=0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_members_read_the_folded_data_at_test(data: HeteroData) -> None:
    member = given(1)
    evaluate(Ensemble({'a': member}, {'a': 1.0}), data, 'test')
    edges = member.encoded[-1]['user', 'interacts', 'item'].edge_index
    assert edges.size(1) == fold_in(data)['user', 'interacts', 'item'].edge_index.size(
        1
    )
    known = member.encoded[-1].ui_adj
    assert known._nnz() > data.ui_adj._nnz()


def test_one_member_ranks_as_by_itself(data: HeteroData) -> None:
    for name, member in trained().items():
        if name == 'floor':
            member.fit(data)
        model = Ensemble({name: member}, {name: 0.7})
        for split in ('val', 'test'):
            alone, found = evaluate(member, data, split), evaluate(model, data, split)
            assert torch.equal(alone.rank, found.rank)
        items, _ = rank(model, data, [0, 3], 2)
        assert torch.equal(items, rank(member, data, [0, 3], 2)[0])


def test_reads_as_much_as_a_member() -> None:
    members = {name: SASRec(9, 4, 1, 1, max_len=n) for name, n in (('a', 3), ('b', 7))}
    assert Ensemble(members, {'a': 1.0, 'b': 0.0}).max_len == 7
    assert Ensemble({'knn': ItemKNN(2, 3)}, {'knn': 1.0}).max_len == 50


def test_is_a_module_like_any_other(data: HeteroData) -> None:
    members = trained()
    # Names that a ModuleDict would refuse.
    model = Ensemble(
        {'items': members['seq'], 'pop': members['graph'], 'a.b': ItemKNN(2, 3)},
        {'items': 1.0, 'pop': 0.5, 'a.b': 0.0},
    )
    assert model.sampling == 'none'
    assert list(model.members) == ['items', 'pop', 'a.b']
    assert model.members['items'] is members['seq']
    number = sum(
        p.numel() for name in ('seq', 'graph') for p in members[name].parameters()
    )
    assert sum(p.numel() for p in model.parameters()) == number
    assert model.train().members['pop'].training
    assert not model.eval().members['pop'].training
    assert 'items=1, pop=0.5' in repr(model)


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        ({'a': 1.0}, r"'weights' needs one weight .*\['a', 'b'\] \(got \{'a': 1.0\}\)"),
        ({'a': 1.0, 'b': 1.0, 'c': 0.0}, "'weights' needs one weight"),
        ({'a': 1.0, 'b': -0.1}, r"'weights' needs finite .*\(got .*-0.1"),
        ({'a': 1.0, 'b': float('nan')}, "'weights' needs finite numbers"),
        ({'a': float('inf'), 'b': 1.0}, "'weights' needs finite numbers"),
        ({'a': 0.0, 'b': 0.0}, 'one of them above 0'),
    ],
)
def test_bad_weights(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ensemble({'a': given(1), 'b': given(2)}, weights)


def test_bad_members(data: HeteroData) -> None:
    with pytest.raises(ValueError, match=r"'members' needs at least one .*\(got none"):
        Ensemble({}, {})
    batch = sequence_batch([[1]] * USERS)
    other = Ensemble({'a': given(1), 'b': given(2, ITEMS + 1)}, {'a': 1.0, 'b': 1.0})
    with pytest.raises(ValueError, match=r"'b' needs to score .* another catalogue"):
        score(other, data, batch)
    sick = given(3)
    sick.scores[4, 2] = float('nan')
    model = Ensemble({'a': given(1), 'sick': sick}, {'a': 1.0, 'sick': 0.2})
    with pytest.raises(ValueError, match=r"'sick' needs finite scores .*1 of 20 rows"):
        score(model, data, batch)
    with pytest.raises(ValueError, match="'sick' needs finite scores"):
        evaluate(model, data, 'test')
