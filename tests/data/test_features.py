import pytest
import torch
from torch_geometric.data import HeteroData

from hellm_pyg.assembly.data import statistics
from hellm_pyg.data.features import present_rows
from hellm_pyg.datasets import FakeRecDataset
from hellm_pyg.datasets.card import data_card
from hellm_pyg.transforms import LeaveOneOut

NAN, INF = torch.nan, torch.inf


def data_with(x, node_type='item', num_nodes=4):
    data = HeteroData()
    data[node_type].num_nodes = num_nodes
    data[node_type].x_text = torch.as_tensor(x)
    return data


def test_rows_of_nan_or_of_zeros_are_missing():
    x = [[NAN, NAN], [0.0, 1.0], [0.0, 0.0], [-2.0, 0.0]]
    expected = [False, True, False, True]
    assert present_rows(data_with(x), 'text').tolist() == expected
    assert present_rows(data_with(x, 'user'), 'text', 'user').tolist() == expected


def test_the_data_card_counts_them_alike():
    data = FakeRecDataset(num_users=30, num_items=20)[0]
    x = data['item'].x_text = torch.ones(20, 4)
    x[:3], x[5] = 0.0, NAN
    own = data_card(data)['modalities']['text']
    assert own['present'] == int(present_rows(data, 'text').sum()) == 16
    told = statistics(LeaveOneOut()(data))
    assert told['text features'].endswith(' wide, 4 items without')


@pytest.mark.parametrize('row', [[NAN, 1.0], [0.0, NAN], [NAN, INF], [-INF, 1.0]])
def test_other_rows_need_to_be_finite(row):
    x = [[1.0, 2.0], row, [NAN, NAN], row]
    with pytest.raises(ValueError, match=r"'x_text' .* 2 rows, the first of them 1\)"):
        present_rows(data_with(x), 'text')


@pytest.mark.parametrize('shape', [(3, 2), (5, 2), (4,), (4, 2, 1)])
def test_every_node_needs_a_row(shape):
    with pytest.raises(ValueError, match=r"'x_text' .* of 'user', \[4, F\] \(got \["):
        present_rows(data_with(torch.ones(shape), 'user'), 'text', 'user')
