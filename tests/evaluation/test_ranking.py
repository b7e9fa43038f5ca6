"""The evaluator over small data: who is read, masked, and in which batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data import SequenceBatch
from hellm_pyg.evaluation import (
    Evaluation,
    Protocol,
    evaluate,
    evaluate_protocols,
    inference,
    iter_rank,
    rank,
)
from hellm_pyg.evaluation.scoring import place
from hellm_pyg.transforms import LeaveOneOut
from tests.builders import data_from_histories, rec_data
from tests.devices import DEVICES

PROTOCOLS = [
    Protocol(history, mask)
    for history in ('train+val', 'train')
    for mask in ('seen', 'train', 'none')
]


class Table(torch.nn.Module):
    """Scores that are given, one row a user."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer('table', table)

    def encode(self, data: HeteroData) -> Tensor:
        return self.table

    def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        return encoded[batch.user]


class Reader(torch.nn.Module):
    """Scores made from the history and from the graph, and what it was given."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(
            torch.rand(num_items, num_items, generator=generator)
        )
        self.dropout = torch.nn.Dropout(0.5)
        self.read: dict[int, list[int]] = {}
        self.num_edges = 0

    def encode(self, data: HeteroData) -> Tensor:
        self.num_edges = data['user', 'interacts', 'item'].edge_index.size(1)
        assert not torch.is_grad_enabled()
        return self.dropout(self.weight)

    def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        for row, user in enumerate(batch.user.tolist()):
            self.read[user] = batch.item[batch.batch == row].tolist()
        out = encoded.new_zeros(batch.batch_size, encoded.size(0))
        return out.index_add(0, batch.batch, encoded[batch.item])


@pytest.fixture
def data() -> HeteroData:
    return LeaveOneOut()(rec_data(num_users=50, num_items=30, max_length=14))


def target_of(data: HeteroData, split: str) -> Tensor:
    return data['user'][f'{split}_item']


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize('protocol', PROTOCOLS, ids=str)
def test_perfect_and_constant_scorers(
    data: HeteroData, split: str, protocol: Protocol
) -> None:
    target = target_of(data, split)
    perfect = torch.zeros(50, 30)
    present = target >= 0
    perfect[present, target[present]] = 1
    found = evaluate(Table(perfect), data, split, protocol=protocol)
    assert set(found.metrics.values()) == {1.0}
    assert torch.equal(found.user, present.nonzero().view(-1))
    constant = evaluate(Table(torch.zeros(50, 30)), data, split, protocol=protocol)
    masked = masked_items(data, split, protocol)
    for user, value in zip(constant.user.tolist(), constant.rank, strict=True):
        unmasked = 30 - len(set(masked[user]) - {int(target[user])})
        assert value == (unmasked + 1) / 2


def masked_items(data: HeteroData, split: str, protocol: Protocol) -> list[list[int]]:
    user, item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    masked = [item[user == u].tolist() for u in range(50)]
    if protocol.mask == 'none':
        return [[] for _ in masked]
    if protocol.mask == 'seen' and split == 'test':
        for u, val in enumerate(data['user'].val_item.tolist()):
            masked[u] += [val] if val >= 0 else []
    return masked


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize('protocol', PROTOCOLS, ids=str)
def test_ranks_are_those_of_brute_force(
    data: HeteroData, split: str, protocol: Protocol, device: str
) -> None:
    table = torch.randint(6, (50, 30), generator=torch.Generator().manual_seed(1))
    model = Table(table.float()).to(device)
    found = evaluate(model, data, split, protocol=protocol)
    assert found.rank.device.type == 'cpu'
    target, masked = target_of(data, split), masked_items(data, split, protocol)
    for user, value in zip(found.user.tolist(), found.rank, strict=True):
        t = int(target[user])
        scores = [
            int(table[user, i]) for i in range(30) if i != t and i not in masked[user]
        ]
        own = int(table[user, t])
        above, tied = sum(s > own for s in scores), scores.count(own)
        assert value == 1 + above + tied / 2


@pytest.mark.parametrize('split', ['val', 'test'])
def test_protocols_of_one_history_are_ranked_at_once(
    data: HeteroData, split: str
) -> None:
    class Counted(Reader):
        batches = 0

        def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
            self.batches += 1
            return super().score(encoded, batch)

    model = Counted(30)
    options = {'ks': (3, 5), 'batch_size': 60, 'beyond': True}
    found = evaluate_protocols(model, data, PROTOCOLS[::-1], split, **options)
    assert model.batches == 2  # one of each history
    assert [result.protocol for result in found] == PROTOCOLS[::-1]
    for result in found:
        alone = evaluate(model, data, split, protocol=result.protocol, **options)
        assert torch.equal(result.rank, alone.rank)
        assert torch.equal(result.user, alone.user)
        assert result.metrics == alone.metrics
    assert evaluate_protocols(model, data, []) == []


def test_what_is_read(data: HeteroData) -> None:
    user, item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    train = [item[user == u].tolist() for u in range(50)]
    val_item = data['user'].val_item
    num_val = int((val_item >= 0).sum())
    for split, history, added in (
        ('val', 'train+val', 0),
        ('test', 'train', 0),
        ('test', 'train+val', 1),
    ):
        model = Reader(30)
        evaluate(model, data, split, protocol=Protocol(history))
        assert model.num_edges == user.numel() + added * num_val
        assert len(model.read) == num_val
        for u, read in model.read.items():
            assert read == train[u] + [int(val_item[u])] * added


def test_masking_reaches_beyond_the_truncated_history() -> None:
    data = LeaveOneOut()(data_from_histories([[0, 1, 2, 3, 4, 5, 6]], 9))
    model = Table(torch.arange(9, 0, -1).float().unsqueeze(0))
    found = evaluate(model, data, 'test', max_len=3)
    assert found.rank.tolist() == [1.0]  # items 0 to 5 are masked


@pytest.mark.parametrize('split', ['val', 'test'])
def test_batches_do_not_matter(data: HeteroData, split: str) -> None:
    model = Reader(30)
    full = evaluate(model, data, split, batch_size=1000)
    for options in ({'batch_size': 1}, {'batch_size': 7}, {'batch_tokens': 50}):
        found = evaluate(model, data, split, **options)
        assert torch.equal(found.rank, full.rank)
        assert found.metrics == full.metrics


def test_a_subset_of_users(data: HeteroData) -> None:
    model = Reader(30)
    full = evaluate(model, data)
    chosen = full.user[1::3].flip(0)
    found = evaluate(model, data, users=chosen)
    assert torch.equal(found.user, full.user[1::3])
    assert torch.equal(found.rank, full.rank[1::3])


def test_the_model_is_left_as_it_was(data: HeteroData) -> None:
    model = torch.nn.Sequential(Reader(30), torch.nn.Dropout())
    model[1].eval()
    model.encode, model.score = model[0].encode, model[0].score
    with inference(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    evaluate(model, data)
    assert model.training
    assert model[0].dropout.training
    assert not model[1].training
    with pytest.raises(ZeroDivisionError), inference(model):
        _ = 1 / 0
    assert model[0].training


def test_bf16_runs_under_autocast(data: HeteroData) -> None:
    kinds = []

    class Matmul(Table):
        def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
            scores = encoded[batch.user] @ torch.eye(30)
            kinds.append(scores.dtype)
            return scores

    table = torch.rand(50, 30)
    evaluate(Matmul(table), data, precision='bf16')
    assert set(kinds) == {torch.bfloat16}
    kinds.clear()
    rank(Matmul(table), data, [0], 3, precision='bf16')
    rank(Matmul(table), data, [0], 3)
    assert kinds == [torch.bfloat16, torch.float32]
    with pytest.raises(ValueError, match=r"'precision' .* \(got 'fp16'\)"):
        evaluate(Matmul(table), data, precision='fp16')


@pytest.mark.parametrize('device', DEVICES)
def test_beyond_accuracy_is_added_on_request(data: HeteroData, device: str) -> None:
    table = torch.rand(50, 30)
    plain = evaluate(Table(table), data, ks=(2, 5))
    found = evaluate(Table(table).to(device), data, ks=(2, 5), beyond=True)
    assert found.metrics.items() > plain.metrics.items()
    top = {
        item
        for user, row in enumerate(table.tolist())
        if user in found.user.tolist()
        for item in best_unseen(data, user, row, 5)
    }
    assert found.metrics['coverage@5'] == pytest.approx(len(top) / 30)
    assert {'personalization@2', 'popularity@5'} < found.metrics.keys()
    with pytest.raises(ValueError, match=r"'ks' needs to be at most .*got 30, but"):
        evaluate(Table(table).to(device), data, ks=(5, 30), beyond=True)


def best_unseen(data: HeteroData, user: int, scores: list[float], k: int) -> list[int]:
    edge_user, edge_item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    seen = edge_item[edge_user == user].tolist()
    left = [item for item in range(30) if item not in seen]
    return sorted(left, key=lambda item: -scores[item])[:k]


def test_the_protocol_is_printed_with_the_numbers(data: HeteroData) -> None:
    found = evaluate(Table(torch.rand(50, 30)), data, 'test', protocol=PROTOCOLS[4])
    assert isinstance(found, Evaluation)
    text = str(found)
    assert text.startswith(f'test, {found.user.numel()} users, history=train, mask=')
    assert f'N@10 {found.metrics["N@10"]:.4f}' in text
    plain = found.to_dict()
    assert (plain['history'], plain['mask']) == ('train', 'train')
    assert plain['users'] == found.user.numel()
    assert plain['metrics'] == found.metrics


def test_bad_input(data: HeteroData) -> None:
    model = Table(torch.rand(50, 30))
    with pytest.raises(ValueError, match=r"'history' .* \(got 'all'\)"):
        Protocol(history='all')
    with pytest.raises(ValueError, match=r"'mask' .* \(got 'val'\)"):
        Protocol(mask='val')
    with pytest.raises(ValueError, match=r"'split' .* \(got 'train'\)"):
        evaluate(model, data, 'train')
    with pytest.raises(ValueError, match=r"'ks' .* \(got \(0, 5\)\)"):
        evaluate(model, data, ks=(0, 5))
    with pytest.raises(ValueError, match='another catalogue'):
        evaluate(Table(torch.rand(50, 29)), data)
    with pytest.raises(ValueError, match='NaN'):
        evaluate(Table(torch.full((50, 30), torch.nan)), data)
    short = LeaveOneOut()(data_from_histories([[0, 1], [2]], 4))
    with pytest.raises(ValueError, match=r"'val_item' .*none of 2 users"):
        evaluate(Table(torch.rand(2, 4)), short)


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
