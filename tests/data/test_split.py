import copy

import pytest
import torch
from torch_geometric import EdgeIndex

from hellm_pyg.data import (
    SequenceLoader,
    fold_in,
    history_edges,
    user_item_adjacency,
)
from hellm_pyg.transforms import LeaveOneOut, UserItemGraph
from tests.builders import data_from_histories, rec_data
from tests.devices import DEVICES

EDGE = ('user', 'interacts', 'item')
HISTORIES = [[3, 1, 4, 0], [2], [], [5, 3], [0, 1, 2]]


def as_lists(histories):
    return [
        histories.item[start:end].tolist()
        for start, end in zip(histories.ptr[:-1], histories.ptr[1:], strict=True)
    ]


@pytest.fixture
def split():
    return LeaveOneOut()(data_from_histories(HISTORIES, 7))


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        (('train',), [[3, 1], [2], [], [5, 3], [0]]),
        (('val',), [[3, 1], [2], [], [5, 3], [0]]),
        (('test', 'train'), [[3, 1], [2], [], [5, 3], [0]]),
        (('test',), [[3, 1, 4], [2], [], [5, 3], [0, 1]]),
        (('all',), HISTORIES),
        (('all', 'train'), HISTORIES),
    ],
)
def test_history_edges(split, args, expected):
    histories = history_edges(split, *args)
    assert as_lists(histories) == expected
    assert histories.length.tolist() == [len(items) for items in expected]
    assert histories.user.tolist() == [
        user for user, items in enumerate(expected) for _ in items
    ]


def test_histories_of_random_data_add_up():
    whole = rec_data(seed=4)
    split = LeaveOneOut()(whole)
    assert as_lists(history_edges(split, 'all')) == as_lists(
        history_edges(whole, 'all')
    )


@pytest.mark.parametrize('device', DEVICES)
def test_histories_before_the_split_are_by_time(device):
    data = data_from_histories(HISTORIES, 7)
    order = torch.tensor([8, 2, 0, 6, 4, 3, 9, 1, 5, 7])
    store = data[EDGE]
    store.edge_index = store.edge_index.as_tensor()[:, order]
    store.time = store.time[order]
    assert as_lists(history_edges(data.to(device), 'all')) == HISTORIES
    store.edge_index = torch.tensor([[1, 0, 1, 0], [5, 6, 4, 3]])
    store.time = torch.tensor([9, 8, 9, 7])
    expected = [[3, 6], [5, 4], [], [], []]
    assert as_lists(history_edges(data, 'all')) == expected
    (batch,) = SequenceLoader(data, 'all', bucket=False)
    assert batch.item.tolist() == [3, 6, 5, 4]
    del store.time  # the order of the edges counts
    expected = [[6, 3], [5, 4], [], [], []]
    assert as_lists(history_edges(data, 'all')) == expected


def test_bad_arguments(split):
    with pytest.raises(ValueError, match=r"'split' .* \(got 'dev'\)"):
        history_edges(split, 'dev')
    with pytest.raises(ValueError, match=r"'history' .* \(got 'val'\)"):
        history_edges(split, 'test', 'val')
    whole = data_from_histories(HISTORIES, 7)
    for name in ('train', 'val', 'test'):
        with pytest.raises(ValueError, match="apply 'LeaveOneOut' first"):
            history_edges(whole, name)
    with pytest.raises(ValueError, match="apply 'LeaveOneOut' first"):
        fold_in(whole)
    split[EDGE].edge_index = split[EDGE].edge_index.as_tensor().flip(1)
    with pytest.raises(ValueError, match='sorted by user'):
        history_edges(split, 'train')


def dense_adjacency(pairs, num_users, num_items):
    adj = torch.zeros(num_users + num_items, num_users + num_items)
    for user, item in pairs:
        adj[user, num_users + item] = adj[num_users + item, user] = 1
    scale = adj.sum(dim=1).rsqrt()
    scale[scale.isinf()] = 0
    return scale[:, None] * adj * scale


@pytest.mark.parametrize('pair', [(3, 0), (-1, 0), (0, 4), (0, -1)])
def test_user_item_adjacency_refuses_ids_out_of_range(pair):
    with pytest.raises(ValueError, match=r"'edge_index\[[01]\]' needs to lie in \[0, "):
        user_item_adjacency(torch.tensor(pair).view(2, 1), 3, 4)


def test_user_item_adjacency_matches_dense():
    edge_index = rec_data(num_users=12, num_items=15)[EDGE].edge_index
    pairs = edge_index.as_tensor().t().tolist()
    expected = dense_adjacency(pairs, 12, 15)
    for kind in (edge_index, edge_index.as_tensor(), edge_index.as_tensor().flip(1)):
        adj = user_item_adjacency(kind, 12, 15)
        assert adj.layout == torch.sparse_csr
        assert adj.dtype == torch.float32
        torch.testing.assert_close(adj.to_dense(), expected)
        assert torch.equal(adj.to_dense(), adj.to_dense().t())


def test_user_item_adjacency_counts_duplicates_once_and_keeps_isolated_nodes():
    edge_index = torch.tensor([[0, 0, 2], [1, 1, 1]])
    adj = user_item_adjacency(edge_index, 3, 4)
    assert adj.shape == (7, 7)
    assert adj.values().numel() == 4
    torch.testing.assert_close(adj.to_dense(), dense_adjacency([(0, 1), (2, 1)], 3, 4))


def test_user_item_adjacency_is_silent(recwarn):
    user_item_adjacency(torch.tensor([[0], [0]]), 1, 1)
    assert not recwarn.list


def test_fold_in(split):
    split[EDGE].rating = torch.ones(split[EDGE].edge_index.size(1))
    before = copy.deepcopy(split)
    split = UserItemGraph()(split)
    num_entries = split.ui_adj.values().numel()
    folded = fold_in(split)
    assert as_lists(history_edges(folded, 'train')) == as_lists(
        history_edges(split, 'test')
    )
    for name in ('test', 'all'):
        assert as_lists(history_edges(folded, name)) == as_lists(
            history_edges(split, name)
        )
    edge_index = folded[EDGE].edge_index
    assert isinstance(edge_index, EdgeIndex)
    edge_index.validate()
    assert edge_index.is_sorted_by_row
    assert edge_index.sparse_size() == (5, 7)
    assert folded[EDGE].edge_attrs() == ['edge_index']
    assert folded['user'].val_item.tolist() == [-1] * 5
    assert folded['user'].test_item.tolist() == [0, -1, -1, -1, 2]
    expected = dense_adjacency(edge_index.as_tensor().t().tolist(), 5, 7)
    torch.testing.assert_close(folded.ui_adj.to_dense(), expected)

    assert torch.equal(split['user'].val_item, before['user'].val_item)
    assert split[EDGE].edge_index.equal(before[EDGE].edge_index)
    assert split.ui_adj.values().numel() == num_entries
    assert 'rating' in split[EDGE]

    twice = fold_in(folded)
    assert twice[EDGE].edge_index.equal(edge_index)


def test_fold_in_everything(split):
    folded = fold_in(UserItemGraph()(split), 'all')
    everything = as_lists(history_edges(split, 'all'))
    for name in ('train', 'test', 'all'):
        assert as_lists(history_edges(folded, name)) == everything
    assert folded['user'].test_item.tolist() == [-1] * 5
    expected = dense_adjacency(folded[EDGE].edge_index.as_tensor().t().tolist(), 5, 7)
    torch.testing.assert_close(folded.ui_adj.to_dense(), expected)


def test_fold_in_without_times_or_graph(split):
    del split['user'].val_time
    folded = fold_in(split)
    assert 'time' not in folded[EDGE]
    assert 'ui_adj' not in folded
