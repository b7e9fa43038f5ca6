import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hellm_pyg.data.loader
from hellm_pyg.data import PairLoader, SequenceLoader
from hellm_pyg.transforms import LeaveOneOut
from tests.builders import data_from_histories, rec_data

NUM_ITEMS = 15
HISTORIES = st.lists(
    st.lists(st.integers(0, NUM_ITEMS - 1), max_size=12, unique=True),
    min_size=1,
    max_size=8,
)
CONFIG = settings(max_examples=60, deadline=None)


def split_data(histories):
    return LeaveOneOut()(data_from_histories(histories, NUM_ITEMS))


@pytest.fixture(scope='module')
def data():
    return LeaveOneOut()(rec_data(num_users=70, seed=1))


def rows_of(batch):
    """Rows as (user, items, targets), the targets of a row as a tuple."""
    rows = []
    for row, user in enumerate(batch.user.tolist()):
        mask = batch.batch == row
        items = tuple(batch.item[mask].tolist())
        target = ()
        if batch.target is not None and batch.target.numel() == batch.user.numel():
            target = (batch.target[row].item(),)
        if batch.target is not None and batch.target.numel() == batch.item.numel():
            target = tuple(batch.target[mask].tolist()) or target
        rows.append((user, items, target))
    return rows


def all_rows(loader):
    return [row for batch in loader for row in rows_of(batch)]


def expected_rows(histories, split, max_len=50, targets='all', history='train+val'):
    """The definition, one user at a time."""
    rows = []
    for user, whole in enumerate(histories):
        held_out = 2 if len(whole) >= 3 else 0
        kept = tuple(whole[-max_len:])
        train = kept[: len(kept) - held_out]
        if split == 'all':
            rows.append((user, kept, ()))
        elif split == 'train' and targets == 'all':
            train = tuple(whole[: len(whole) - held_out][-max_len - 1 :])
            if len(train) >= 2:
                rows.append((user, train[:-1], train[1:]))
        elif split == 'train' and targets == 'last':
            rows += [(user, train[:t], (train[t],)) for t in range(1, len(train))]
        elif split == 'val' and held_out:
            rows.append((user, train, (whole[-2],)))
        elif split == 'test' and held_out:
            past = kept[:-1] if history == 'train+val' else train
            rows.append((user, past, (whole[-1],)))
    return rows


def same(a, b):
    assert type(a) is type(b)
    for name, value in vars(a).items():
        other = getattr(b, name)
        if value is None:
            assert other is None
        else:
            assert torch.equal(value, other)


def same_all(a, b):
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for first, second in zip(a, b, strict=True):
        same(first, second)


@given(
    HISTORIES,
    st.sampled_from(['train', 'val', 'test', 'all']),
    st.sampled_from(['all', 'last']),
    st.sampled_from(['train', 'train+val']),
    st.integers(4, 14),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), st.integers(14, 40)),
)
@CONFIG
def test_every_row_exactly_once(
    histories, split, targets, history, max_len, size, shuffle, bucket, tokens
):
    loader = SequenceLoader(
        split_data(histories),
        split,
        batch_size=size,
        max_len=max_len,
        targets=targets,
        history=history,
        shuffle=shuffle,
        bucket=bucket,
        batch_tokens=tokens,
    )
    expected = expected_rows(histories, split, max_len, targets, history)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert loader.num_rows == len(expected)
    got = [row for batch in batches for row in rows_of(batch)]
    assert Counter(got) == Counter(expected)
    if not shuffle and not bucket:
        assert got == expected
    for batch in batches:
        assert batch.user.numel() > 0
        assert bool((batch.batch.diff() >= 0).all())
        if tokens is None:
            assert batch.batch_size <= size
        else:
            assert batch.batch_size * max(int(batch.length.max()), 1) <= tokens


@given(HISTORIES, st.sampled_from(['all', 'last']), st.integers(4, 14))
@CONFIG
def test_no_negative_in_the_history_and_no_held_out_item(histories, targets, max_len):
    data = split_data(histories)
    loader = SequenceLoader(
        data, batch_size=3, max_len=max_len, targets=targets, num_neg=6
    )
    known = [h[: len(h) - 2] if len(h) >= 3 else h for h in histories]
    for batch in loader:
        assert batch.neg_item.shape == (batch.num_targets, 6)
        owner = batch.user[batch.batch] if targets == 'all' else batch.user
        for user, target, negatives in zip(
            owner.tolist(), batch.target.tolist(), batch.neg_item.tolist(), strict=True
        ):
            assert target in known[user]
            assert not set(negatives) & set(known[user])
        for user, item in zip(
            batch.user[batch.batch].tolist(), batch.item.tolist(), strict=True
        ):
            assert item in known[user]


@pytest.mark.parametrize(
    'loader',
    [
        lambda data: PairLoader(data, batch_size=16, seed=3),
        lambda data: PairLoader(data, 16, num_neg=4, sampling='interaction', seed=3),
        lambda data: SequenceLoader(data, batch_size=7, num_neg=2, seed=3),
        lambda data: SequenceLoader(data, targets='last', batch_tokens=64, num_neg=1),
        lambda data: SequenceLoader(data, 'test', batch_size=9),
    ],
)
class TestEveryLoader:
    @pytest.mark.parametrize('epoch', [0, 3])
    def test_resume_by_skipping(self, data, loader, epoch):
        whole = loader(data)
        whole.set_epoch(epoch)
        batches = list(whole)
        assert len(batches) == len(whole) > 3
        for start in (0, 1, 3, len(batches), len(batches) + 5):
            fresh = loader(data)
            fresh.set_epoch(epoch)
            same_all(fresh.batches(start), batches[start:])

    def test_re_iterable_whatever_the_global_seed(self, data, loader):
        loader = loader(data)
        torch.manual_seed(0)
        first = list(loader)
        state = torch.get_rng_state()
        same_all(loader, first)
        assert torch.equal(state, torch.get_rng_state())
        loader.set_epoch(1)
        list(loader)
        loader.set_epoch(0)
        same_all(loader, first)

    @pytest.mark.parametrize('world_size', [1, 2, 3])
    def test_shards_partition_the_epoch(self, data, loader, world_size):
        loader = loader(data)
        whole = list(loader)
        for rank in range(world_size):
            share = loader.shard(rank, world_size)
            assert len(share) == len(whole[rank::world_size])
            same_all(share, whole[rank::world_size])
            same_all(share.batches(1), whole[rank::world_size][1:])
        even = [loader.shard(rank, world_size, even=True) for rank in range(world_size)]
        assert {len(share) for share in even} == {len(whole) // world_size}
        same_all(even[-1], whole[world_size - 1 :: world_size])

    def test_shard_has_its_own_epoch(self, data, loader):
        loader = loader(data)
        before = list(loader)
        loader.shard(0, 2).set_epoch(5)
        assert loader.epoch == 0
        same_all(loader, before)

    def test_epoch_chosen_while_iterating_counts_from_the_next(self, data, loader):
        loader = loader(data)
        expected = list(loader)
        iterator = iter(loader)
        got = [next(iterator)]
        loader.set_epoch(2)
        same_all(got + list(iterator), expected)

    def test_bad_arguments(self, data, loader):
        loader = loader(data)
        with pytest.raises(ValueError, match=r"'rank' .* \(got 2 of 2\)"):
            loader.shard(2, 2)
        with pytest.raises(ValueError, match=r"'epoch' .* \(got -1\)"):
            loader.set_epoch(-1)
        with pytest.raises(ValueError, match=r"'start' .* \(got -1\)"):
            next(loader.batches(-1))


@pytest.mark.parametrize('targets', ['all', 'last'])
def test_epochs_and_seeds_differ(data, targets):
    loader = SequenceLoader(data, batch_size=8, targets=targets)
    first = all_rows(loader)
    loader.set_epoch(1)
    second = all_rows(loader)
    assert first != second
    assert Counter(first) == Counter(second)
    assert all_rows(SequenceLoader(data, 'train', 8, targets=targets, seed=1)) != first


def test_negatives_differ_by_batch_and_epoch():
    data = split_data([[0, 1, 2, 3]] * 8)
    sequences = SequenceLoader(data, batch_size=4, num_neg=9, shuffle=False)
    pairs = PairLoader(data, 4, num_neg=9, sampling='interaction')
    for loader in (sequences, pairs):
        drawn = []
        for epoch in range(3):
            loader.set_epoch(epoch)
            drawn += [tuple(batch.neg_item.view(-1).tolist()) for batch in loader]
        assert len(set(drawn)) == len(drawn)


def test_evaluation_negatives_are_refused(data):
    with pytest.raises(ValueError, match="'num_neg' needs to be 0 unless"):
        SequenceLoader(data, 'val', num_neg=1)


@pytest.mark.parametrize('shuffle', [False, True])
def test_bucketing_saves_padding(shuffle):
    data = LeaveOneOut()(rec_data(600, 60, max_length=50))

    def padding(bucket):
        loader = SequenceLoader(data, 'train', 8, shuffle=shuffle, bucket=bucket)
        batches = list(loader)
        real = sum(batch.item.numel() for batch in batches)
        return sum(b.batch_size * int(b.length.max()) for b in batches) / real

    assert padding(True) < 1.1 < 1.5 < padding(False)


def test_batches_hold_alike_many_targets_by_default():
    data = LeaveOneOut()(rec_data(600, 60, max_length=50))

    def spread(**options):
        targets = sorted(b.num_targets for b in SequenceLoader(data, **options))
        return targets[-2] / targets[1]  # of what is left over there may be little

    assert spread(batch_size=32, bucket=True) > 8
    assert spread(batch_size=32) < 2
    assert spread(batch_tokens=800) < 2
    assert SequenceLoader(data, targets='last').bucket
    assert SequenceLoader(data, 'val').bucket


def test_shuffled_buckets_are_no_curriculum():
    data = LeaveOneOut()(rec_data(600, 60, max_length=50))
    loader = SequenceLoader(data, batch_size=8, bucket=True)
    lengths = [int(b.length.max()) for b in loader]
    rises = sum(a < b for a, b in pairwise(lengths))
    assert 0.3 < rises / len(lengths) < 0.7
    lengths = [int(b.length.max()) for b in SequenceLoader(data, 'test', 8)]
    assert lengths == sorted(lengths, reverse=True)


def test_users_are_kept_in_the_given_order(data):
    has_target = (data['user'].test_item >= 0).nonzero().view(-1)
    chosen = has_target[[4, 1, 9, 1]]
    loader = SequenceLoader(data, 'test', 3, bucket=False, users=chosen)
    assert [row[0] for row in all_rows(loader)] == chosen.tolist()
    by_user = {row[0]: row for row in all_rows(SequenceLoader(data, 'test', 8))}
    assert all_rows(loader) == [by_user[user] for user in chosen.tolist()]
    with_none = SequenceLoader(data, 'val', users=[*range(70)], bucket=False)
    assert [row[0] for row in all_rows(with_none)] == has_target.tolist()
    assert list(SequenceLoader(data, 'all', users=[])) == []
    with pytest.raises(ValueError, match=r"'users' .* \(got \[70, -1\]\)"):
        SequenceLoader(data, 'all', users=[3, 70, -1])
    mask = torch.arange(70) < 3
    for wrong in (mask, mask.tolist(), torch.tensor([2.7])):
        with pytest.raises(ValueError, match=r"'users' needs .* 'mask\.nonzero\(\)'"):
            SequenceLoader(data, 'all', users=wrong)
    assert SequenceLoader(data, 'all', users=mask.nonzero()).num_rows == 3


def test_known_without_a_split():
    data = data_from_histories([[1, 2, 3], [], [4]], 6)
    loader = SequenceLoader(data, 'all', bucket=False)
    assert all_rows(loader) == [(0, (1, 2, 3), ()), (1, (), ()), (2, (4,), ())]
    with pytest.raises(ValueError, match="apply 'LeaveOneOut' first"):
        SequenceLoader(data, 'train')
    with pytest.raises(ValueError, match="apply 'LeaveOneOut' first"):
        PairLoader(data)


def test_row_without_history():
    data = split_data([[1, 2, 3]])
    data['user', 'interacts', 'item'].edge_index = torch.empty(2, 0, dtype=torch.long)
    data['user', 'interacts', 'item'].time = torch.empty(0, dtype=torch.long)
    (batch,) = SequenceLoader(data, 'val')
    assert batch.batch_size == 1
    assert batch.item.numel() == 0
    assert batch.target.tolist() == [2]
    (batch,) = SequenceLoader(data, 'test')
    assert batch.item.tolist() == [2]
    assert list(SequenceLoader(data, 'train')) == []
    assert list(PairLoader(data)) == []


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'split': 'dev'}, r"'split' .* \(got 'dev'\)"),
        ({'targets': 'first'}, r"'targets' .* \(got 'first'\)"),
        ({'history': 'val'}, r"'history' .* \(got 'val'\)"),
        ({'batch_size': 0}, r"'batch_size' .* \(got 0\)"),
        ({'num_neg': -1}, r"'num_neg' .* \(got -1\)"),
        ({'num_neg': 10**9}, r"'num_neg' .* at most \d+, .* \(got 1000000000\)"),
        ({'seed': -1}, r"'seed' .* \(got -1\)"),
        ({'max_len': 0}, r"'max_len' .* least 1 \(got 0\)"),
        (
            {'max_len': 3, 'targets': 'last'},
            r"'max_len' needs to be at least 4 .*held-out.* \(got 3\)",
        ),
        (
            {'max_len': 2, 'split': 'val'},
            r"'max_len' needs to be at least 3 .*held-out.* \(got 2\)",
        ),
        ({'max_len': 0, 'split': 'all'}, r"'max_len' .* least 1 \(got 0\)"),
        ({'batch_tokens': 49}, r"'batch_tokens' .* least 50 \('max_len'\) \(got 49\)"),
    ],
)
def test_sequence_loader_bad_arguments(data, kwargs, message):
    with pytest.raises(ValueError, match=message):
        SequenceLoader(data, **kwargs)


@pytest.mark.parametrize('num_neg', [1, 3])
def test_pairs_by_user(data, num_neg):
    edge_index = data['user', 'interacts', 'item'].edge_index
    pairs = set(map(tuple, edge_index.as_tensor().t().tolist()))
    loader = PairLoader(data, batch_size=32, num_neg=num_neg)
    assert len(loader) == len(pairs) // 32 + 1
    for batch in loader:
        assert batch.user.unique().numel() == batch.num_targets == 32
        assert batch.neg_item.shape == ((32,) if num_neg == 1 else (32, 3))
        for user, pos, neg in zip(
            batch.user.tolist(),
            batch.pos_item.tolist(),
            batch.neg_item.view(32, -1).tolist(),
            strict=True,
        ):
            assert (user, pos) in pairs
            assert not any((user, item) in pairs for item in neg)
    assert next(iter(PairLoader(data, batch_size=4096))).num_targets == 70


def test_pairs_by_user_cover_users_and_their_items_evenly():
    data = split_data([[0, 1, 2, 3, 4, 5], [6, 7], [], [8]])
    loader = PairLoader(data, batch_size=2)
    draws: Counter = Counter()
    for epoch in range(600):
        loader.set_epoch(epoch)
        for batch in loader:
            draws.update(zip(batch.user.tolist(), batch.pos_item.tolist(), strict=True))
    total = sum(draws.values())
    expected = {(0, i): 1 / 12 for i in range(4)} | {(1, 6): 1 / 6, (1, 7): 1 / 6}
    expected |= {(3, 8): 1 / 3}
    assert draws.keys() == expected.keys()
    for pair, share in expected.items():
        assert abs(draws[pair] / total - share) < 0.02


def test_pairs_of_many_users_are_drawn_without_permuting_all(monkeypatch):
    def permute(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(hellm_pyg.data.loader, 'MANY_USERS', 199)
    monkeypatch.setattr(torch, 'randperm', permute)
    loader = PairLoader(split_data([[user % 9] for user in range(200)]), 3)
    count = torch.zeros(200)
    for epoch in range(60):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert all(batch.user.unique().numel() == 3 for batch in batches)
        count += torch.cat([batch.user for batch in batches]).bincount(minlength=200)
    expected = count.sum() / 200
    chi2 = ((count - expected) ** 2 / expected).sum()
    assert chi2 < 267  # the 99.9 % quantile for 199 degrees of freedom is 266.4
    same_all(loader.batches(5), batches[5:])
    for size, number in ((4, 200), (3, 199)):  # too few for so large a batch, or at all
        few = PairLoader(split_data([[1]] * number), size)
        with pytest.raises(AssertionError):
            next(iter(few))


@given(HISTORIES, st.integers(1, 9))
@CONFIG
def test_pairs_by_interaction_are_one_pass(histories, size):
    data = split_data(histories)
    known = {u: h[:-2] if len(h) >= 3 else h for u, h in enumerate(histories)}
    loader = PairLoader(data, batch_size=size, sampling='interaction')
    batches = list(loader)
    assert len(loader) == len(batches) == -(-sum(map(len, known.values())) // size)
    pairs: list = []
    for batch in batches:
        pairs += zip(batch.user.tolist(), batch.pos_item.tolist(), strict=True)
        for user, neg in zip(batch.user.tolist(), batch.neg_item.tolist(), strict=True):
            assert neg not in known[user]
    assert Counter(pairs) == Counter((u, i) for u, h in known.items() for i in h)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'batch_size': 0}, r"'batch_size' .* \(got 0\)"),
        ({'num_neg': 0}, r"'num_neg' .* \(got 0\)"),
        ({'num_neg': 10**9}, r"'num_neg' .* at most \d+, .* \(got 1000000000\)"),
        ({'sampling': 'item'}, r"'sampling' .* \(got 'item'\)"),
    ],
)
def test_pair_loader_bad_arguments(data, kwargs, message):
    with pytest.raises(ValueError, match=message):
        PairLoader(data, **kwargs)


def test_repr(data):
    loader = SequenceLoader(data, 'val')
    assert str(loader) == f'SequenceLoader(val, {loader.num_rows} rows)'
    assert str(PairLoader(data)) == 'PairLoader(user, batch_size=1024)'


@pytest.mark.parametrize(
    ('name', 'num_users', 'num_items', 'num_train', 'num_samples', 'num_steps'),
    [
        ('beauty', 22_363, 12_101, 153_776, 127_598, 151),
        ('sports', 35_598, 18_357, 225_141, 187_694, 220),
        ('toys', 19_412, 11_924, 128_773, 106_254, 126),
    ],
)
def test_counts_of_the_real_data(
    name, num_users, num_items, num_train, num_samples, num_steps
):
    if 'HELLM_DATA' not in os.environ:
        pytest.skip('HELLM_DATA names no folder of real data')
    path = Path(os.environ['HELLM_DATA'], f'amazon_{name}', 'sequences.txt')
    histories = [
        [int(item) - 1 for item in line.split()[1:]]
        for line in path.read_text().splitlines()
    ]
    data = LeaveOneOut()(data_from_histories(histories, num_items))
    assert data['user'].num_nodes == num_users
    assert data['user', 'interacts', 'item'].edge_index.size(1) == num_train
    prefixes = SequenceLoader(data, targets='last')
    assert prefixes.num_rows == num_samples
    assert sum(batch.num_targets for batch in prefixes) == num_samples
    positions = SequenceLoader(data, targets='all')
    assert positions.num_rows == num_users
    inputs = sum(min(len(history) - 3, 50) for history in histories)
    assert sum(batch.num_targets for batch in positions) == inputs > num_samples
    assert max(int(batch.length.max()) for batch in positions) == 50
    test = list(SequenceLoader(data, 'test', batch_size=1024))
    assert sum(batch.batch_size for batch in test) == num_users
    assert max(int(batch.length.max()) for batch in test) == 49
    assert len(PairLoader(data)) == num_steps
