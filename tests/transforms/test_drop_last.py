import pytest
import torch
import torch_geometric.transforms as T
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hellm_pyg.transforms import DropLast, LeaveOneOut
from tests.builders import data_from_histories, rec_data
from tests.devices import DEVICES

EDGE = ('user', 'interacts', 'item')
HISTORIES = st.lists(
    st.lists(st.integers(0, 8), max_size=8, unique=True), min_size=1, max_size=5
)


@given(HISTORIES, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_splits_what_is_left(histories, count):
    assume(max(map(len, histories)) > count or not any(histories))
    found = T.Compose([DropLast(count), LeaveOneOut()])(
        data_from_histories(histories, 9)
    )
    shorter = [history[:-count] for history in histories]
    expected = LeaveOneOut()(data_from_histories(shorter, 9))
    for name in ('val_item', 'test_item', 'val_time', 'test_time'):
        assert torch.equal(found['user'][name], expected['user'][name])
    assert torch.equal(found[EDGE].edge_index, expected[EDGE].edge_index)
    assert torch.equal(found[EDGE].time, expected[EDGE].time)
    assert found['user'].num_nodes == len(histories)
    assert found['item'].num_nodes == 9


def test_tests_on_what_is_validated_on_without():
    whole = LeaveOneOut()(rec_data(seed=1))['user']
    data = T.Compose([DropLast(), LeaveOneOut()])(rec_data(seed=1))['user']
    tested = data.test_item >= 0
    assert bool(tested.any())
    assert torch.equal(data.test_item[tested], whole.val_item[tested])


@pytest.mark.parametrize('device', DEVICES)
def test_the_latest_go_in_any_order_of_the_edges(device):
    data = data_from_histories([[3, 1, 2], [4, 0]], 5)
    order = torch.tensor([2, 4, 0, 3, 1])
    data[EDGE].edge_index = data[EDGE].edge_index[:, order]
    data[EDGE].time = data[EDGE].time[order]
    data[EDGE].weight = order.float()
    out = DropLast()(data.to(device))
    assert out[EDGE].edge_index.device.type == device
    assert out[EDGE].edge_index.tolist() == [[0, 0, 1], [3, 1, 4]]
    assert out[EDGE].weight.tolist() == [0.0, 1.0, 3.0]
    del data[EDGE].time
    assert DropLast(2)(data)[EDGE].edge_index.tolist() == [[0], [2]]


def test_bad_arguments():
    for count in (0, -1, 1.5, float('nan'), True):
        with pytest.raises(ValueError, match=rf"'count' needs to be .*got {count}\)"):
            DropLast(count)
    with pytest.raises(ValueError, match='split already'):
        DropLast()(LeaveOneOut()(rec_data()))


def test_something_is_to_be_left():
    data = data_from_histories([[3, 1, 2], [4, 0]], 5)
    assert DropLast(2)(data)[EDGE].edge_index.tolist() == [[0], [3]]
    with pytest.raises(ValueError, match=r"'count' needs to be below 3, .*\(got 3\)"):
        DropLast(3)(data)


def test_repr():
    assert repr(DropLast(2)) == 'DropLast(2)'
