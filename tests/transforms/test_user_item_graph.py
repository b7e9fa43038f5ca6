import pytest
import torch

from hellm_pyg.data import user_item_adjacency
from hellm_pyg.transforms import LeaveOneOut, UserItemGraph
from tests.builders import rec_data

EDGE = ('user', 'interacts', 'item')


def test_graph_of_the_training_edges():
    data = LeaveOneOut()(rec_data())
    out = UserItemGraph()(data)
    assert 'ui_adj' not in data
    assert out.ui_adj.layout == torch.sparse_csr
    edge_index = data[EDGE].edge_index
    expected = user_item_adjacency(edge_index, 40, 30).to_dense()
    assert torch.equal(out.ui_adj.to_dense(), expected)
    user, item = edge_index.as_tensor()
    degree = torch.bincount(user)[user] * torch.bincount(item)[item]
    weight = out.ui_adj.to_dense()[user, item + 40]
    torch.testing.assert_close(weight, degree.float().rsqrt())
    assert out.ui_adj.values().numel() == 2 * edge_index.size(1)


def test_held_out_items_do_not_leak():
    out = UserItemGraph()(LeaveOneOut()(rec_data()))
    dense = out.ui_adj.to_dense()
    for name in ('val_item', 'test_item'):
        item = out['user'][name]
        user = (item >= 0).nonzero().view(-1)
        assert user.numel() > 0
        assert not dense[user, item[user] + 40].any()


def test_unsplit_data_are_refused():
    with pytest.raises(ValueError, match=r"'UserItemGraph', or held-out items leak"):
        UserItemGraph()(rec_data())
