"""The evaluator over small data: who is read, masked, and in which batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data import SequenceBatch
from hellm_pyg.evaluation import (
    Evaluation,
    Protocol,
    choose_weights,
    evaluate,
    evaluate_protocols,
    inference,
    rank,
)
from hellm_pyg.transforms import LeaveOneOut
from tests.builders import data_from_histories, rec_data
from tests.devices import DEVICES
from tests.evaluation.scorers import Reader, Table, best_unseen

PROTOCOLS = [
    Protocol(history, mask)
    for history in ('train+val', 'train')
    for mask in ('seen', 'train', 'none')
]


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


def test_a_models_own_length_is_read(data: HeteroData) -> None:
    model = Reader(30)
    model.max_len = 4
    own = evaluate(model, data, 'test')
    read = dict(model.read)
    assert max(map(len, read.values())) == 3  # and the target
    model.max_len = 9
    assert torch.equal(evaluate(model, data, 'test', max_len=4).rank, own.rank)
    assert model.read == read
    both = choose_weights({'short': model, 'long': Reader(30)}, data, (0.0,))
    assert torch.equal(both.alone['short'].rank, evaluate(model, data).rank)


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
