"""Weights of an ensemble against the evaluation of every combination."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch_geometric.data import HeteroData

from hellm_pyg.data import SequenceBatch
from hellm_pyg.evaluation import Protocol, choose_weights, evaluate
from hellm_pyg.nn.models import Ensemble, ItemKNN, LightGCN, Popularity, SASRec
from hellm_pyg.transforms import LeaveOneOut, UserItemGraph
from tests.builders import rec_data

USERS, ITEMS = 50, 30
GRID = (0.5, 0.0, 0.2)


class Table(torch.nn.Module):
    """Scores that are given, one row a user, and how often it was asked."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.asked: list[int] = []

    def encode(self, data: HeteroData) -> Tensor:
        self.asked.append(0)
        return self.table

    def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.asked[-1] += batch.batch_size
        return encoded[batch.user]


def table(seed: int, levels: int | None = None) -> Table:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(USERS, ITEMS, generator=generator)
    return Table(scores if levels is None else (levels * scores).round())


@pytest.fixture
def data() -> HeteroData:
    return UserItemGraph()(LeaveOneOut()(rec_data(USERS, ITEMS, max_length=14)))


@pytest.fixture
def members(data: HeteroData) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    found = {
        'seq': SASRec(ITEMS, 8, num_layers=1),
        'graph': LightGCN(USERS, ITEMS, 8),
        'knn': ItemKNN(USERS, ITEMS),
    }
    found['knn'].fit(data)
    return found


@pytest.mark.parametrize('mask', ['seen', 'train', 'none'])
@pytest.mark.parametrize('batch_size', [7, 64])
def test_equals_the_evaluation_of_every_combination(
    data: HeteroData, members: dict[str, torch.nn.Module], mask: str, batch_size: int
) -> None:
    protocol = Protocol('train', mask)  # type: ignore[arg-type]
    choice = choose_weights(
        members, data, GRID, 'N@5', (3,), protocol, batch_size, max_len=6
    )
    best: tuple[float, dict[str, float]] | None = None
    for values in itertools.product(sorted(GRID), repeat=2):
        weights = dict(zip(members, (1.0, *values), strict=True))
        model = Ensemble(members, weights)
        found = evaluate(model, data, 'val', (3, 5), protocol, batch_size, max_len=6)
        assert choice.tried[tuple(weights.values())] == found.metrics['N@5']
        if weights == choice.weights:
            rank, first = choice.chosen.rank, found.rank < 6
            assert torch.equal(rank[first], found.rank[first])
            assert bool((rank[~first] >= 6).all())
            assert torch.equal(choice.chosen.user, found.user)
            assert choice.chosen.metrics == found.metrics
        if best is None or found.metrics['N@5'] > best[0]:
            best = found.metrics['N@5'], weights
    assert best is not None
    assert choice.tried[tuple(choice.weights.values())] == best[0]
    assert len(choice.tried) == 9
    assert choice.chosen.protocol == protocol
    assert choice.chosen.split == 'val'
    for name, member in members.items():
        alone = evaluate(member, data, 'val', (3, 5), protocol, batch_size, max_len=6)
        assert torch.equal(choice.alone[name].rank, alone.rank)
        assert choice.alone[name].metrics == alone.metrics


def test_each_member_scores_every_user_once(data: HeteroData) -> None:
    tables = {name: table(seed).train() for seed, name in enumerate('abc')}
    choice = choose_weights(tables, data, GRID, batch_size=8)
    for member in tables.values():
        assert member.asked == [choice.chosen.user.numel()]
        assert member.training


def test_more_weight_where_it_helps(data: HeteroData) -> None:
    perfect = torch.zeros(USERS, ITEMS)
    target = data['user'].val_item
    perfect[target >= 0, target[target >= 0]] = 1
    tables = {'noise': table(1), 'more': table(2), 'perfect': Table(perfect)}
    choice = choose_weights(tables, data, (0, 0.1, 5), 'MRR@10')
    assert choice.weights['perfect'] == 5
    assert choice.alone['perfect'].metrics['N@10'] == 1
    assert choice.chosen.metrics['N@10'] > choice.alone['noise'].metrics['N@10']
    # As soon as no weight helps, there is none.
    choice = choose_weights({'perfect': Table(perfect), 'noise': table(1)}, data)
    assert choice.weights == {'perfect': 1.0, 'noise': 0.0}


def test_of_equal_combinations_the_fewest_and_smallest_weights_win(
    data: HeteroData,
) -> None:
    first = table(1, levels=2)
    flat = Table(torch.zeros(USERS, ITEMS))
    tables = {'first': first, 'flat': flat, 'copy': first, 'other': flat}
    for grid in (GRID, (0.5, 0.2)):
        choice = choose_weights(tables, data, grid)
        assert set(choice.weights.values()) == {1.0, min(grid)}
    assert len(set(choice.tried.values())) == 1


def test_a_member_that_is_better_by_itself_is_named(
    data: HeteroData, caplog: pytest.LogCaptureFixture
) -> None:
    perfect = torch.zeros(USERS, ITEMS)
    target = data['user'].val_item
    perfect[target >= 0, target[target >= 0]] = 1
    tables = {'noise': table(1), 'perfect': Table(perfect)}
    choice = choose_weights(tables, data, (0, 0.1))
    together = f'{choice.chosen.metrics["N@10"]:.4f}'
    assert f"N@10 is {together} together, but 1.0000 by 'perfect' alone" in caplog.text
    caplog.clear()
    turned = {'perfect': Table(perfect), 'noise': table(1)}
    choose_weights(turned, data, (0, 0.1))
    assert not caplog.records
    choose_weights(turned, data, (5,))
    assert "by 'perfect' alone: it needs to be the first" in caplog.text


def test_one_member_needs_no_weights(data: HeteroData) -> None:
    choice = choose_weights({'a': table(1)}, data)
    assert choice.weights == {'a': 1.0}
    assert list(choice.tried) == [(1.0,)]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'grid': ()}, r"'grid' needs to hold .*\(got \(\)\)"),
        ({'grid': (0, -1)}, r"'grid' needs to hold .*\(got \(0, -1\)\)"),
        ({'grid': (0, float('nan'))}, "'grid' needs to hold"),
        (
            {'grid': range(65)},
            r"'grid' has 65 weights, which are 4225 .*more than 4096",
        ),
        ({'metric': 'N10'}, r"'metric' needs to be .*\(got 'N10'\)"),
        ({'metric': 'P@10'}, "'metric' needs to be"),
        ({'metric': 'N@0'}, "'metric' needs to be"),
        ({'ks': (0,)}, r"'ks' needs to hold positive cut-offs \(got \(0,\)\)"),
        ({'members': {}}, r"'members' needs at least one .*\(got none\)"),
    ],
)
def test_bad_arguments(data: HeteroData, arguments: dict, message: str) -> None:
    tables = {name: table(seed) for seed, name in enumerate('abc')}
    with pytest.raises(ValueError, match=message):
        choose_weights(**{'members': tables, 'data': data, **arguments})
    assert not tables['a'].asked


@pytest.mark.parametrize('bad', ['inf', 'nan'])
def test_scores_that_are_not_finite_name_the_member(data: HeteroData, bad: str) -> None:
    sick = table(2)
    sick.table[:, 3] = float(bad)
    with pytest.raises(ValueError, match="'sick' needs finite scores"):
        choose_weights({'a': table(1), 'sick': sick}, data)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize('number', [1, 2, 3])
def test_memory_is_that_of_a_few_matrices_of_scores(
    data: HeteroData, number: int
) -> None:
    # All items of a constant member are rivals.
    data['item'].num_nodes = items = 4000
    flat = {str(index): Table(torch.zeros(USERS, items)) for index in range(number)}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        choose_weights(flat, data, GRID, batch_size=20)
    assert found.profiler is not None
    events = [e for e in found.profiler.kineto_results.events() if e.nbytes()]
    events.sort(key=lambda event: event.start_ns())
    peak = max(itertools.accumulate(event.nbytes() for event in events))
    assert peak < (2 * number + 9) * 4 * 20 * items


def test_floors_are_members(data: HeteroData) -> None:
    floor = Popularity(USERS, ITEMS)
    floor.fit(data)
    choice = choose_weights({'floor': floor, 'noise': table(1)}, data, (0, 0.1))
    assert set(choice.weights) == {'floor', 'noise'}
