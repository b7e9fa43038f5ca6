from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise

import pytest
import torch
import torch_geometric.transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex

from hellm_pyg.data import PairLoader, SequenceLoader
from hellm_pyg.data.split import fold_in, history_edges
from hellm_pyg.evaluation import Protocol, evaluate, rank
from hellm_pyg.nn.models import Popularity
from hellm_pyg.transforms import HoldOutByDate, LeaveOneOut, UserItemGraph
from tests.builders import data_from_histories, rec_data
from tests.devices import DEVICES

EDGE, LATER = ('user', 'interacts', 'item'), ('user', 'later', 'item')
NUM_USERS, NUM_ITEMS = 4, 9
ROWS = st.lists(
    st.tuples(
        st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1), st.integers(0, 9)
    ),
    max_size=30,
)


def built(rows):
    data = data_from_histories([[]] * NUM_USERS, NUM_ITEMS)
    columns = torch.tensor(rows, dtype=torch.long).view(-1, 3)
    data[EDGE].edge_index = columns[:, :2].t().contiguous()
    data[EDGE].time = columns[:, 2]
    data[EDGE].row = torch.arange(len(rows))
    return data


def rows_of(data, relation):
    store = data[relation]
    columns = [*store.edge_index.as_tensor(), store.time]
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(ROWS, st.integers(1, 7), st.integers(1, 2), st.booleans(), st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_matches_the_definition(rows, val_from, width, bounded, min_history):
    test_from = val_from + width
    until = test_from + width if bounded else None
    end = 99 if until is None else until
    train, later, targets = [], [], {'val': {}, 'test': {}}
    for user in range(NUM_USERS):
        own = [r for r, (u, _, _) in enumerate(rows) if u == user]
        own.sort(key=lambda r: rows[r][2])  # stable
        past = [r for r in own if rows[r][2] < val_from]
        train += past
        for r in own[len(past) :]:
            split = 'val' if rows[r][2] < test_from else 'test'
            can = len(past) >= min_history and rows[r][2] < end
            if can and user not in targets[split]:
                targets[split][user] = rows[r][1:]
            else:
                later.append(r)
    data, split = built(rows), HoldOutByDate(val_from, test_from, until, min_history)
    if not (targets['val'] and targets['test']):
        with pytest.raises(ValueError, match=r'leave no (val|test) target'):
            split(data)
        return
    out = split(data)
    assert out[EDGE].row.tolist() == train
    assert out[LATER].row.tolist() == later
    assert rows_of(out, EDGE) == [rows[r] for r in train]
    assert rows_of(out, LATER) == [rows[r] for r in later]
    for name, found in targets.items():
        item, time = out['user'][f'{name}_item'], out['user'][f'{name}_time']
        expected = [found.get(user, (-1, -1)) for user in range(NUM_USERS)]
        assert list(zip(item.tolist(), time.tolist(), strict=True)) == expected
    assert data[EDGE].row.numel() == len(rows)  # the input is left as it was


@pytest.fixture
def split():
    """Times from 0 on, step one a user, so that the dates cut all users."""
    data = rec_data(num_users=60, seed=3, min_length=1, max_length=12)
    data[EDGE].time = data[EDGE].time % 100
    return T.Compose([HoldOutByDate(4, 7), UserItemGraph()])(data)


@pytest.mark.parametrize('max_len', [5, 20, 50])
def test_what_follows_the_targets_takes_no_room(max_len):
    """A user with 10 training items, both targets and 40 interactions after these."""
    times = [*range(10), 20, 30, *range(40, 80)]
    data = data_from_histories([list(range(52)), [0, 1]], 52)
    data[EDGE].time = torch.tensor([*times, 0, 1])
    out = HoldOutByDate(20, 30)(data)
    assert (int(out['user'].val_item[0]), int(out['user'].test_item[0])) == (10, 11)
    for split, known, held_out in (('train', 10, 0), ('val', 10, 2), ('test', 11, 1)):
        first, end = max(known + held_out - max_len, 0), known
        if split == 'train':  # cut by itself, and the last one is a target
            first, end = max(known - 1 - max_len, 0), known - 1
        batch = next(iter(SequenceLoader(out, split, 8, max_len, users=[0])))
        assert batch.item.tolist() == list(range(first, end))


def test_no_time_reaches_over_a_date(split):
    user = split['user']
    assert (split[EDGE].time < 4).all()
    val, test = user.val_time[user.val_item >= 0], user.test_time[user.test_item >= 0]
    assert val.min() >= 4 > 0
    assert val.max() < 7 <= test.min()


def test_histories_are_all_that_came_before(split):
    user = split['user']
    known = [
        *rows_of(split, EDGE),
        *rows_of(split, LATER),
        *(
            (u, int(user[f'{name}_item'][u]), int(user[f'{name}_time'][u]))
            for name in ('val', 'test')
            for u in range(60)
            if user[f'{name}_item'][u] >= 0
        ),
    ]
    known.sort(key=lambda row: row[2])  # times of a user differ
    for name in ('test', 'all'):
        histories = history_edges(split, name)
        folded = history_edges(fold_in(split, name), 'train')
        for u, (start, end) in enumerate(pairwise(histories.ptr.tolist())):
            last = user.test_time[u] if user.test_item[u] >= 0 else 4
            first = user.val_item[u] >= 0
            expected = [
                item
                for v, item, time in known
                if v == u
                and (
                    name == 'all' or time < last or (first and time == user.val_time[u])
                )
            ]
            assert histories.item[start:end].tolist() == expected
            assert folded.item[folded.ptr[u] : folded.ptr[u + 1]].tolist() == expected


@pytest.mark.parametrize('device', DEVICES)
def test_data_on_any_device(split, device):
    data = rec_data(num_users=60, seed=3, min_length=1, max_length=12).to(device)
    data[EDGE].time %= 100
    found = HoldOutByDate(4, 7)(data)
    assert found[EDGE].edge_index.device.type == device
    assert rows_of(found, EDGE) == rows_of(split, EDGE)
    assert rows_of(found, LATER) == rows_of(split, LATER)
    for name in ('val_item', 'test_item'):
        assert torch.equal(found['user'][name].cpu(), split['user'][name])


def test_recommended_items_are_new_to_the_user(split):
    model = Popularity(60, 30)
    model.fit(split)
    item, _ = rank(model, split, range(60), 3)
    known = {
        (u, i) for relation in (EDGE, LATER) for u, i, _ in rows_of(split, relation)
    }
    assert not known & {(u, i) for u in range(60) for i in item[u].tolist()}


def test_everything_downstream_takes_it(split):
    edges = split[EDGE].edge_index
    assert isinstance(edges, EdgeIndex)
    edges.validate()
    split[LATER].edge_index.validate()
    assert edges.sparse_size() == (60, 30)
    assert edges._indptr is not None
    assert edges._T_perm is not None
    held = {name: split['user'][f'{name}_item'] for name in ('val', 'test')}
    for name, target in held.items():
        rows = list(SequenceLoader(split, name, 16))
        got = torch.cat([batch.target for batch in rows])
        user = torch.cat([batch.user for batch in rows])
        assert torch.equal(got, target[user])
        assert sorted(user.tolist()) == (target >= 0).nonzero().view(-1).tolist()
        assert all((batch.length > 0).all() for batch in rows)
    # A user without a validation target but with a test target, and the reverse.
    assert ((held['val'] < 0) & (held['test'] >= 0)).sum() == 0
    assert ((held['val'] >= 0) & (held['test'] < 0)).any()
    assert len(list(PairLoader(split, 16))) > 0
    model = Popularity(60, 30)
    model.fit(split)
    for name in ('val', 'test'):
        for history in ('train', 'train+val'):
            result = evaluate(model, split, name, protocol=Protocol(history))
            assert result.user.numel() == int((held[name] >= 0).sum())


def test_dates_of_all_kinds():
    second = int(datetime(2024, 5, 1, tzinfo=UTC).timestamp())
    rows = [(0, i, second + (i - 2) * 86400) for i in range(5)]
    east = timezone(timedelta(hours=5))
    for val_from, test_from in (
        ('2024-05-01', '2024-05-02'),
        ('2024-05-01T00:00:00Z', '2024-05-02 00:00'),
        (date(2024, 5, 1), date(2024, 5, 2)),
        (datetime(2024, 5, 1), datetime(2024, 5, 2, tzinfo=UTC)),
        (datetime(2024, 5, 1, 5, tzinfo=east), '2024-05-02T05:00+05:00'),
        (second, second + 86400),
    ):
        out = HoldOutByDate(val_from, test_from)(built(rows))
        assert out[EDGE].edge_index.tolist() == [[0, 0], [0, 1]]
        assert out['user'].val_item[0] == 2
        assert out['user'].test_item[0] == 3
        assert out[LATER].edge_index.tolist() == [[0], [4]]


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        (('2024-05-01', '2024-05-01'), r"need to ascend .got val_from='2024-05-01'"),
        ((5, 3), r"^'val_from' and 'test_from' need to ascend .got val_from=5, test_"),
        ((5, 7, 6), r"^'val_from', 'test_from' and 'until' need to ascend .*until=6"),
        (('May', 7), r"'val_from' needs an ISO 8601 date .* .got 'May'"),
        ((5, 7.5), r"'test_from' needs a date or a whole number .got 7.5"),
        ((5, 7, None, -1), r"'min_history' needs to be at least 0 .got -1"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        HoldOutByDate(*arguments)


def test_bad_data(split):
    with pytest.raises(ValueError, match='split already'):
        HoldOutByDate(4, 7)(split)
    with pytest.raises(ValueError, match='split already'):
        LeaveOneOut()(split)
    data = rec_data()
    match = r'leave no val target .*got 10000 and 20000; the times run from 0 to 39'
    with pytest.raises(ValueError, match=match):
        HoldOutByDate(10_000, 20_000)(data)
    data.time_unit = 'number'
    for dates in (('2024-05-01', 2 * 10**9), (4, '2024-05-01'), (4, 7, '2024-05-01')):
        last = ('test_from', 'until')[len(dates) - 2]
        match = rf"'{last}' need to be numbers, .*got '2024-05-01'"
        with pytest.raises(ValueError, match=match):
            HoldOutByDate(*dates)(data)
    data.time_unit = 'position'
    with pytest.raises(ValueError, match="column of the times as 'time'"):
        HoldOutByDate(4, 7)(data)
    del data[EDGE].time
    del data.time_unit
    with pytest.raises(ValueError, match="column of the times as 'time'"):
        HoldOutByDate(4, 7)(data)


def test_names():
    assert str(HoldOutByDate(4, 7)) == 'HoldOutByDate(4, 7)'
    shown = "HoldOutByDate('2024-05-01', '2024-06-01', until='2024-07-01')"
    assert str(HoldOutByDate('2024-05-01', '2024-06-01', '2024-07-01')) == shown
