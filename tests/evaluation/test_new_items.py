"""Items that a model does not know, in lists and in histories."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import HeteroData

from hellm_pyg.data import SequenceBatch
from hellm_pyg.evaluation import NeighborScores, rank
from hellm_pyg.evaluation.scoring import place
from hellm_pyg.nn.models import LightGCN
from hellm_pyg.transforms import LeaveOneOut, UserItemGraph
from tests.builders import rec_data
from tests.devices import DEVICES
from tests.evaluation.scorers import Reader, Table

USERS, ITEMS, NEW = 12, 30, 7


@pytest.fixture
def data() -> HeteroData:
    return UserItemGraph()(LeaveOneOut()(rec_data(num_users=USERS, num_items=ITEMS)))


def neighbors(num_new: int = NEW, k: int = 3, items: int = ITEMS) -> NeighborScores:
    generator = torch.Generator().manual_seed(num_new)
    neighbor = torch.randint(items, (num_new, k), generator=generator)
    return NeighborScores(neighbor, torch.rand(num_new, k, generator=generator), items)


def everything(data: HeteroData, user: int) -> set[int]:
    edge_user, edge_item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    held_out = [int(data['user'][name][user]) for name in ('val_item', 'test_item')]
    return {*edge_item[edge_user == user].tolist(), *held_out}


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 5), st.integers(0, 99))
def test_scores_are_those_of_a_dense_product(
    k: int, num_items: int, num_new: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    neighbor = torch.randint(num_items, (num_new, k), generator=generator)
    weight = torch.rand(num_new, k, generator=generator) + 0.01
    scores = torch.randn(4, num_items, generator=generator)
    dense = torch.zeros(num_new, num_items).scatter_add_(1, neighbor, weight)
    dense /= dense.sum(dim=1, keepdim=True)
    found = NeighborScores(neighbor, weight, num_items)(scores)
    assert torch.equal(found[:, :num_items], scores)
    assert torch.allclose(found[:, num_items:], scores @ dense.T, atol=1e-6)


def test_linear_models_score_the_mean_embedding(data: HeteroData) -> None:
    torch.manual_seed(0)
    model, new = LightGCN(USERS, ITEMS, 8).eval(), neighbors()
    user, item = model.encode(data)[:2]
    batch = SequenceBatch(torch.arange(USERS), torch.arange(0), torch.arange(0))
    found = new(model.score((user, item), batch))[:, ITEMS:]
    embedding = (new.weight.unsqueeze(2) * item[new.neighbor]).sum(dim=1)
    assert torch.allclose(found, user @ embedding.T, atol=1e-6)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('candidates', [None, [3, ITEMS, ITEMS + 2, ITEMS + 6]])
def test_new_items_are_ranked_among_the_others(
    data: HeteroData, candidates: list[int] | None, device: str
) -> None:
    new, there = neighbors(), place(data, torch.device(device))
    table = torch.rand(USERS, ITEMS, generator=torch.Generator().manual_seed(1))
    model = Table(table).to(device)
    options = {'neighbor_scores': new, 'candidates': candidates, 'batch_size': 5}
    item, score = rank(model, there, range(USERS), 4, allow_fewer=True, **options)
    every = new(table)
    for user in range(USERS):
        known = everything(data, user)
        asked = range(ITEMS + NEW) if candidates is None else candidates
        left = sorted(
            (i for i in asked if i not in known), key=lambda i: -every[user, i]
        )
        assert [i for i in item[user].tolist() if i >= 0] == left[:4]
        assert torch.allclose(score[user, : len(left)], every[user, left[:4]])


def test_all_items_are_listed_once(data: HeteroData) -> None:
    item, _ = rank(
        Reader(ITEMS),
        data,
        [0, 1],
        99,
        False,
        allow_fewer=True,
        neighbor_scores=neighbors(),
    )
    assert item.sort(dim=1).values.tolist() == [list(range(ITEMS + NEW))] * 2
    empty, _ = rank(
        Reader(ITEMS), data, [], 99, allow_fewer=True, neighbor_scores=neighbors()
    )
    assert empty.shape == (0, ITEMS + NEW)


def test_none_are_no_difference(data: HeteroData) -> None:
    new = neighbors(num_new=0)
    assert new.num_new == 0
    with_none = rank(Reader(ITEMS), data, range(USERS), 5, neighbor_scores=new)
    without = rank(Reader(ITEMS), data, range(USERS), 5)
    assert all(map(torch.equal, with_none, without))


def test_the_nearest_stands_for_a_new_item_in_a_history(data: HeteroData) -> None:
    new, model = neighbors(), Reader(ITEMS)
    histories = [[4, ITEMS + 2, 9], [ITEMS + 6], [5]]
    batch = SequenceBatch(
        user=torch.full((3,), -1),
        item=torch.tensor([i for items in histories for i in items]),
        batch=torch.tensor([r for r, items in enumerate(histories) for _ in items]),
    )
    nearest = new.neighbor[:, 0].tolist()
    assert new.read(batch).item.tolist() == [4, nearest[2], 9, nearest[6], 5]
    item, _ = rank(
        model, data, batch, ITEMS + NEW, allow_fewer=True, neighbor_scores=new
    )
    for row, items in enumerate(histories):  # what stands in them is left out
        listed = set(item[row].tolist()) - {-1}
        assert listed == set(range(ITEMS + NEW)) - set(items)
    assert model.read[-1] == [5]
    for wrong in (-1, ITEMS + NEW):
        bad = SequenceBatch(
            torch.tensor([-1]), torch.tensor([wrong]), torch.tensor([0])
        )
        with pytest.raises(ValueError, match=rf"'batch.item' .* {wrong} to {wrong}"):
            new.read(bad)


@pytest.mark.parametrize(
    ('neighbor', 'weight', 'match'),
    [
        (torch.zeros(3, dtype=torch.long), torch.ones(3), r"'neighbor' .* \[N, k\]"),
        (torch.zeros(3, 0, dtype=torch.long), torch.ones(3, 0), r'got \[\] for item 0'),
        (torch.tensor([[5]]), torch.ones(1, 1), r'\[0, 5\), the number of known items'),
        (torch.tensor([[-1]]), torch.ones(1, 1), 'values from -1 to -1'),
        (torch.tensor([[0.5]]), torch.ones(1, 1), 'whole numbers'),
        (torch.tensor([[1, 2]]), torch.ones(1, 1), r"'weight' .*\[1, 2\] .*\[1, 1\]"),
        (
            torch.tensor([[1, 2]]),
            torch.tensor([[2.0, -1.0]]),
            r'got \[2.0, -1.0\] for item 0',
        ),
        (
            torch.tensor([[1], [2]]),
            torch.tensor([[1.0], [0.0]]),
            r'not all zero .*\[0.0\] for item 1',
        ),
        (torch.tensor([[1]]), torch.tensor([[torch.nan]]), 'finite weights'),
        (torch.tensor([[1]]), torch.tensor([[torch.inf]]), 'finite weights'),
    ],
)
def test_bad_arguments(
    neighbor: torch.Tensor, weight: torch.Tensor, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        NeighborScores(neighbor, weight, 5)


def test_neighbors_of_another_catalogue(data: HeteroData) -> None:
    with pytest.raises(
        ValueError, match=r"'neighbor_scores' .* 30 items .* \(got 29 known"
    ):
        rank(Reader(ITEMS), data, [0], 3, neighbor_scores=neighbors(items=29))
    for k in (0, ITEMS + NEW + 1):
        with pytest.raises(ValueError, match=rf'from 1 to 37 items \(got {k}\)'):
            rank(Reader(ITEMS), data, [0], k, neighbor_scores=neighbors())
    with pytest.raises(ValueError, match='from 0 to 36'):
        rank(Reader(ITEMS), data, [0], 3, neighbor_scores=neighbors(), candidates=[37])
