"""The best items of users over small data: what is read, left out and refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data import SequenceBatch
from hellm_pyg.evaluation import iter_rank, rank
from hellm_pyg.evaluation.scoring import place
from hellm_pyg.transforms import LeaveOneOut
from tests.builders import rec_data
from tests.devices import DEVICES
from tests.evaluation.scorers import Reader, Table


@pytest.fixture
def data() -> HeteroData:
    return LeaveOneOut()(rec_data(num_users=50, num_items=30, max_length=14))


def everything(data: HeteroData) -> list[list[int]]:
    user, item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    held_out = torch.stack([data['user'].val_item, data['user'].test_item], dim=1)
    return [
        item[user == u].tolist() + [i for i in held_out[u].tolist() if i >= 0]
        for u in range(int(data['user'].num_nodes))
    ]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('exclude_seen', [True, False])
def test_rank_lists_the_best(data: HeteroData, exclude_seen: bool, device: str) -> None:
    table = torch.randint(9, (50, 30), generator=torch.Generator().manual_seed(2))
    users = [7, 3, 49, 7]
    model, there = Table(table.float()).to(device), place(data, torch.device(device))
    item, score = rank(model, there, users, 4, exclude_seen, batch_size=3)
    known = everything(data)
    for row, user in enumerate(users):
        left = [i for i in range(30) if not (exclude_seen and i in known[user])]
        best = sorted(left, key=lambda i: (-int(table[user, i]), i))[:4]
        assert item[row].tolist() == best
        assert score[row].tolist() == table[user, best].tolist()


def test_rank_reads_everything(data: HeteroData) -> None:
    model = Reader(30)
    total = sum(len(items) for items in everything(data))
    rank(model, data, torch.arange(50), 2)
    assert model.num_edges == total
    assert [model.read[u] for u in range(50)] == everything(data)
    whole = rec_data(num_users=50, num_items=30, max_length=14)
    unsplit = Reader(30)
    item, _ = rank(unsplit, whole, torch.arange(50), 2)
    assert unsplit.num_edges == total
    assert unsplit.read == model.read
    again, _ = rank(model, data, torch.arange(50), 2)
    assert torch.equal(item, again)


def test_rank_takes_histories(data: HeteroData) -> None:
    model = Reader(30)
    known = everything(data)
    histories = [known[5], [1, 2, 3], []]
    batch = SequenceBatch(
        user=torch.tensor([5, -1, -1]),
        item=torch.tensor([i for items in histories for i in items]),
        batch=torch.tensor([r for r, items in enumerate(histories) for _ in items]),
    )
    item, _ = rank(model, data, batch, 6)
    assert not set(item[0].tolist()) & set(known[5])
    assert not set(item[1].tolist()) & {1, 2, 3}
    assert item[2].tolist() == [0, 1, 2, 3, 4, 5]  # all scores are zero
    one, _ = rank(model, data, [5], 6)
    assert torch.equal(item[0], one[0])
    cut = SequenceBatch(
        user=torch.tensor([5]),
        item=torch.tensor(known[5][-1:]),
        batch=torch.tensor([0]),
    )
    item, _ = rank(model, data, cut, 6)
    assert not set(item[0].tolist()) & set(known[5])


def test_histories_are_scored_in_batches_of_their_last_items(data: HeteroData) -> None:
    class Counting(Reader):
        def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
            sizes.append((batch.batch_size, int(batch.length.max())))
            return super().score(encoded, batch)

    sizes: list[tuple[int, int]] = []
    histories = [[u % 30, (u + 1) % 30, (u + 2) % 30][: 1 + u % 3] for u in range(21)]
    batch = SequenceBatch(
        user=torch.full((21,), -1),
        item=torch.tensor([i for items in histories for i in items]),
        batch=torch.tensor([r for r, items in enumerate(histories) for _ in items]),
    )
    item, score = rank(Counting(30), data, batch, 6, batch_size=8, max_len=2)
    assert sizes == [(8, 2), (8, 2), (5, 2)]
    for row, items in enumerate(histories):
        assert not set(item[row].tolist()) & set(items)  # masked as a whole
        read = torch.tensor(items[-2:])
        last = SequenceBatch(torch.tensor([-1]), read, torch.zeros_like(read))
        best, alone = rank(Reader(30), data, last, 30, exclude_seen=False)
        expected = dict(zip(best[0].tolist(), alone[0].tolist(), strict=True))
        assert score[row].tolist() == pytest.approx(
            [expected[i] for i in item[row].tolist()]
        )
    sizes.clear()
    rank(Counting(30), data, batch, 6, batch_tokens=6, max_len=2)
    assert sizes == [(3, 2)] * 7


def test_a_models_own_length_is_the_default(data: HeteroData) -> None:
    class Long(Reader):
        max_len = 60

        def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
            lengths.append(int(batch.length.max()))
            return super().score(encoded, batch)

    lengths: list[int] = []
    item = torch.arange(70) % 30
    batch = SequenceBatch(torch.tensor([-1]), item, torch.zeros_like(item))
    rank(Long(30), data, batch, 3, exclude_seen=False)
    rank(Long(30), data, batch, 3, exclude_seen=False, max_len=7)
    Long.max_len = 80
    rank(Long(30), data, batch, 3, exclude_seen=False)
    assert lengths == [60, 7, 70]


def test_rank_streams_all_users(data: HeteroData) -> None:
    model = Reader(30).train()
    parts = iter_rank(model, data, None, 3, batch_size=8)
    first = next(parts)
    assert torch.is_grad_enabled()
    assert model.training
    assert not torch.is_autocast_enabled('cpu')
    rest = list(parts)
    assert [part[0].numel() for part in (first, *rest)] == [8] * 6 + [2]
    user = torch.cat([first[0], *(part[0] for part in rest)])
    assert user.tolist() == list(range(50))
    item, _ = rank(model, data, user, 3)
    assert torch.equal(torch.cat([first[1], *(part[1] for part in rest)]), item)


def test_short_lists_end_in_no_item(data: HeteroData) -> None:
    table = torch.rand(50, 30, generator=torch.Generator().manual_seed(3))
    known = everything(data)
    item, score = rank(Table(table), data, range(50), 25, allow_fewer=True)
    more = rank(Table(table), data, range(50), 10**9, allow_fewer=True)
    assert more[0].size(1) == table.size(1)
    assert torch.equal(more[0][:, :25], item)
    for user in range(50):
        left = [i for i in range(30) if i not in known[user]]
        best = sorted(left, key=lambda i: -float(table[user, i]))[:25]
        none = 25 - len(best)
        assert item[user].tolist() == best + [-1] * none
        assert score[user].tolist() == table[user, best].tolist() + [-torch.inf] * none
    assert 0 < int((item[:, -1] < 0).sum()) < 50


@pytest.mark.parametrize('exclude_seen', [True, False])
def test_candidates_alone_are_ranked(data: HeteroData, exclude_seen: bool) -> None:
    table = torch.rand(50, 30, generator=torch.Generator().manual_seed(3))
    known, chosen = everything(data), [17, 3, 22, 3, 9, 0, 28]
    item, score = rank(
        Table(table), data, range(50), 5, exclude_seen,
        candidates=chosen, allow_fewer=True, batch_size=16,
    )  # fmt: skip
    for user in range(50):
        seen = known[user] if exclude_seen else set()
        left = sorted(set(chosen) - set(seen), key=lambda i: -float(table[user, i]))
        assert [i for i in item[user].tolist() if i >= 0] == left[:5]
        assert torch.equal(score[user][item[user] >= 0], table[user, left[:5]])
    expected = rank(Table(table), data, range(50), 2)
    order = torch.randperm(30)
    for every in (order.to(torch.uint8), order.numpy()[::-1], set(range(30))):
        found = rank(Table(table), data, range(50), 2, candidates=every)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ('candidates', 'said'),
    [
        ([], 'at least one item'),
        ([3, 30], r'from 0 to 29 \(got 3 to 30\)'),
        ([-1, 3], r'from 0 to 29 \(got -1 to 3\)'),
        ([0.5], 'item indices'),
        (torch.ones(30, dtype=torch.bool), 'item indices'),
        ([[1, 2]], 'item indices'),
        ([[1], [2, 3]], 'item indices'),
        (['a'], 'item indices'),
        ([None, 1], 'item indices'),
        ([2**70], 'item indices'),
        (5, 'item indices'),
    ],
)
def test_candidates_are_checked(data: HeteroData, candidates: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"'candidates' .*{said}"):
        rank(Table(torch.rand(50, 30)), data, [0], 1, candidates=candidates)


def test_too_few_candidates(data: HeteroData) -> None:
    model = Table(torch.rand(50, 30))
    with pytest.raises(ValueError, match='got 3, but user 7 has 2 items left'):
        rank(model, data, [7], 3, exclude_seen=False, candidates=[4, 5])


def test_rank_refuses(data: HeteroData) -> None:
    model = Table(torch.rand(50, 30))
    for k in (0, 31):
        with pytest.raises(ValueError, match=f"'k' .* 30 items \\(got {k}\\)"):
            rank(model, data, [0], k)
    for k in (1.5, '3', None, True):
        with pytest.raises(ValueError, match=rf"'k' .* whole number \(got {k!r}\)"):
            rank(model, data, [0], k, allow_fewer=True)  # type: ignore[arg-type]
    longest = max(range(50), key=lambda u: len(everything(data)[u]))
    left = 30 - len(everything(data)[longest])
    rank(model, data, [longest], left)
    with pytest.raises(
        ValueError, match=f'got {left + 1}, but user {longest} has {left} items left'
    ):
        rank(model, data, range(50), left + 1)
    rank(model, data, [longest], 30, exclude_seen=False)
    with pytest.raises(ValueError, match='finite'):
        rank(Table(torch.full((50, 30), -torch.inf)), data, [0], 1)
    item, score = rank(model, data, [], 2)
    assert item.shape == score.shape == (0, 2)
