import pytest
import torch
import torch_geometric.transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data.datapipes import DatasetAdapter

from hellm_pyg.data.split import INTERACTS
from hellm_pyg.transforms import HoldOutByDate, LeaveOneOut, UserItemGraph
from tests.builders import data_from_histories, rec_data
from tests.devices import DEVICES

EDGE = ('user', 'interacts', 'item')
NUM_USERS, NUM_ITEMS = 4, 9
INTERACTIONS = st.lists(
    st.tuples(
        st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1), st.integers(0, 3)
    ),
    max_size=30,
)


@given(INTERACTIONS)
@settings(max_examples=80, deadline=None)
def test_matches_the_definition(interactions):
    """Any edge order, equal times: ties keep the order of the edges."""
    data = data_from_histories([[]] * NUM_USERS, NUM_ITEMS)
    columns = torch.tensor(interactions, dtype=torch.long).view(-1, 3)
    data[EDGE].edge_index = columns[:, :2].t().contiguous()
    data[EDGE].time = columns[:, 2]
    data[EDGE].row = torch.arange(len(interactions))
    out = LeaveOneOut()(data)

    train, val, test = [], [], []
    for user in range(NUM_USERS):
        rows = [r for r, (u, _, _) in enumerate(interactions) if u == user]
        rows.sort(key=lambda r: interactions[r][2])  # stable
        if len(rows) >= 3:
            *rows, val_row, test_row = rows
            val.append(interactions[val_row][1:])
            test.append(interactions[test_row][1:])
        else:
            val.append((-1, -1))
            test.append((-1, -1))
        train += rows

    expected = [interactions[row] for row in train]
    edge_index = out[EDGE].edge_index.as_tensor()
    got = [*zip(*edge_index.tolist(), out[EDGE].time.tolist(), strict=True)]
    assert got == expected
    assert out[EDGE].row.tolist() == train
    user = out['user']
    assert [*zip(user.val_item.tolist(), user.val_time.tolist(), strict=True)] == val
    assert [*zip(user.test_item.tolist(), user.test_time.tolist(), strict=True)] == test


@pytest.mark.parametrize('device', DEVICES)
def test_data_on_any_device(device):
    expected, found = LeaveOneOut()(rec_data()), LeaveOneOut()(rec_data().to(device))
    edge_index = found[EDGE].edge_index.as_tensor()
    assert edge_index.device.type == device
    assert torch.equal(edge_index.cpu(), expected[EDGE].edge_index.as_tensor())
    for name in ('val_item', 'test_item'):
        assert torch.equal(found['user'][name].cpu(), expected['user'][name])


def test_edges_are_an_edge_index_with_caches():
    out = LeaveOneOut()(rec_data())
    edge_index = out[EDGE].edge_index
    assert isinstance(edge_index, EdgeIndex)
    edge_index.validate()
    assert edge_index.is_sorted_by_row
    assert edge_index.sparse_size() == (40, 30)
    assert edge_index._indptr is not None
    assert edge_index._T_indptr is not None
    assert edge_index._T_perm is not None


def test_short_histories_stay_for_training():
    out = LeaveOneOut()(data_from_histories([[4], [], [2, 1], [0, 1, 2]], 5))
    assert out['user'].val_item.tolist() == [-1, -1, -1, 1]
    assert out['user'].test_item.tolist() == [-1, -1, -1, 2]
    assert out['user'].val_item.dtype == torch.int64
    assert out[EDGE].edge_index.tolist() == [[0, 2, 2, 3], [4, 2, 1, 0]]


def test_without_times_the_order_of_the_edges_counts():
    data = data_from_histories([[3, 1, 2]], 5)
    del data[EDGE].time
    out = LeaveOneOut()(data)
    assert (out['user'].val_item.item(), out['user'].test_item.item()) == (1, 2)
    assert 'val_time' not in out['user']


def test_held_out_items_are_in_no_edge():
    out = LeaveOneOut()(rec_data(seed=7))
    pairs = set(map(tuple, out[EDGE].edge_index.as_tensor().t().tolist()))
    for name in ('val_item', 'test_item'):
        held_out = [*enumerate(out['user'][name].tolist())]
        assert any(item >= 0 for _, item in held_out)
        assert not pairs & set(held_out)


def test_input_is_left_untouched_and_the_rest_is_kept():
    data = rec_data()
    num_edges = data[EDGE].edge_index.size(1)
    out = LeaveOneOut()(data)
    assert data[EDGE].edge_index.size(1) == data[EDGE].time.numel() == num_edges
    assert 'val_item' not in data['user']
    assert out.fingerprint == data.fingerprint
    assert torch.equal(out['item'].x_text, data['item'].x_text)


def test_twice_is_refused():
    with pytest.raises(ValueError, match=r"split already .*'val_item'"):
        T.Compose([LeaveOneOut(), LeaveOneOut()])(rec_data())


def test_names():
    assert str(LeaveOneOut()) == 'LeaveOneOut()'
    pipe = DatasetAdapter([rec_data()]).leave_one_out().user_item_graph()
    (out,) = pipe
    expected = UserItemGraph()(LeaveOneOut()(rec_data()))
    assert torch.equal(out.ui_adj.to_dense(), expected.ui_adj.to_dense())


@pytest.mark.parametrize('transform', [LeaveOneOut(), HoldOutByDate(101, 102)])
@pytest.mark.parametrize(('kind', 'row'), [('user', 0), ('item', 1)])
@pytest.mark.parametrize('wrong', [-1, 4])
def test_ids_of_nobody_are_refused(transform, kind, row, wrong):
    data = data_from_histories([[0, 1, 2, 3]] * 4, 4)
    edge_index = data[INTERACTS].edge_index.as_tensor().clone()
    edge_index[row, 0] = wrong
    data[INTERACTS].edge_index = edge_index
    match = rf"'data.edge_index.*in \[0, 4\), the number of {kind}s"
    with pytest.raises(ValueError, match=match):
        transform(data)


def test_numbers_of_nodes_are_needed():
    data = data_from_histories([[0, 1, 2, 3]], 4)
    del data['user'].num_nodes
    with pytest.raises(ValueError, match=r"set data\['user'\].num_nodes"):
        LeaveOneOut()(data)
