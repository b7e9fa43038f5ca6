"""LightGCN against PyG's on the edge index, and its penalty."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import LightGCN as PyGLightGCN
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from hellm_pyg.data.loader import PairLoader
from hellm_pyg.data.split import fold_in
from hellm_pyg.datasets.fake import FakeRecDataset
from hellm_pyg.evaluation import evaluate
from hellm_pyg.nn.models import LightGCN, Popularity
from hellm_pyg.transforms import LeaveOneOut, UserItemGraph
from tests.builders import rec_data
from tests.nn.models.batches import pair_batch, sequence_batch, train

NUM_USERS, NUM_ITEMS = 40, 30


@pytest.fixture(scope='module')
def data() -> HeteroData:
    return UserItemGraph()(LeaveOneOut()(rec_data(NUM_USERS, NUM_ITEMS)))


def bipartite(data: HeteroData) -> Tensor:
    user, item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    item = item + NUM_USERS
    return torch.stack([torch.cat([user, item]), torch.cat([item, user])])


@pytest.mark.parametrize('num_layers', [0, 1, 3])
def test_equals_pyg_on_the_edge_index(data: HeteroData, num_layers: int) -> None:
    torch.manual_seed(0)
    model = LightGCN(NUM_USERS, NUM_ITEMS, 8, num_layers)
    other = PyGLightGCN(NUM_USERS + NUM_ITEMS, 8, num_layers, normalize=False)
    other.load_state_dict(model.bipartite.state_dict())
    edge_index, weight = gcn_norm(bipartite(data), add_self_loops=False)
    weight = weight if weight is not None else torch.ones(edge_index.size(1))
    expected = other.get_embedding(edge_index, weight)
    out = torch.cat(model.encode(data))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        model.bipartite.get_embedding(edge_index, weight), expected
    )
    cotangent = torch.randn_like(out)
    grads = torch.autograd.grad((out * cotangent).sum(), model.parameters())
    torch.testing.assert_close(
        grads, torch.autograd.grad((expected * cotangent).sum(), other.parameters())
    )


def test_equals_the_dense_formula(data: HeteroData) -> None:
    model = LightGCN(NUM_USERS, NUM_ITEMS, 8, num_layers=2)
    adjacency = torch.zeros(NUM_USERS + NUM_ITEMS, NUM_USERS + NUM_ITEMS)
    adjacency[tuple(bipartite(data))] = 1
    scale = adjacency.sum(dim=1).pow(-0.5)
    scale[scale.isinf()] = 0
    adjacency = scale[:, None] * adjacency * scale
    x = model.bipartite.embedding.weight
    expected = (x + adjacency @ x + adjacency @ adjacency @ x) / 3
    torch.testing.assert_close(torch.cat(model.encode(data)), expected)


def test_tables_have_their_own_bounds() -> None:
    torch.manual_seed(0)
    model = LightGCN(2000, 20, 64)
    user, item = model.bipartite.embedding.weight.split([2000, 20])
    for rows in (user, item):
        bound = math.sqrt(6 / (rows.size(0) + 64))
        assert 0.95 * bound < rows.abs().max().item() <= bound
    before = item.clone()
    model.reset_parameters()
    assert not torch.equal(model.bipartite.embedding.weight[2000:], before)


def test_penalty_is_the_norm_before_propagation(data: HeteroData) -> None:
    torch.manual_seed(0)
    model = LightGCN(NUM_USERS, NUM_ITEMS, 8, lambda_reg=0.7)
    batch = pair_batch([3, 5, 3], [1, 2, 4], [0, 9, 9])
    user, item = model.encode(data)
    u, p, n = user[batch.user], item[batch.pos_item], item[batch.neg_item]
    ranking = F.softplus((u * (n - p)).sum(dim=1)).mean()
    table = model.bipartite.embedding.weight
    norms = [
        table[batch.user].pow(2).sum().sqrt(),
        table[NUM_USERS + batch.pos_item].pow(2).sum().sqrt(),
        table[NUM_USERS + batch.neg_item].pow(2).sum().sqrt(),
    ]
    expected = ranking + 0.7 * sum(norms) / 3
    torch.testing.assert_close(model.loss(data, batch), expected)
    model.lambda_reg = 0.0
    torch.testing.assert_close(model.loss(data, batch), ranking)


def test_reads_the_graph_of_the_data(data: HeteroData) -> None:
    model = LightGCN(NUM_USERS, NUM_ITEMS, 8)
    batch = sequence_batch([[]], user=[0])
    before = model.score(model.encode(data), batch)
    after = model.score(model.encode(fold_in(data)), batch)
    assert not torch.allclose(before, after)
    assert torch.equal(model.score(model.encode(data), batch), before)


def test_beats_popularity() -> None:
    data = UserItemGraph()(LeaveOneOut()(FakeRecDataset()[0]))
    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    popularity = Popularity(num_users, num_items)
    popularity.fit(data)
    torch.manual_seed(0)
    model = LightGCN(num_users, num_items, 16, num_layers=2)
    train(model, data, PairLoader(data, 256, sampling='interaction'), 30)
    for split in ('val', 'test'):
        floor = evaluate(popularity, data, split).metrics['N@10']
        assert evaluate(model, data, split).metrics['N@10'] > 1.5 * floor


def test_bad_input() -> None:
    unsplit = rec_data(NUM_USERS, NUM_ITEMS)
    with pytest.raises(ValueError, match=r"no 'ui_adj'.*UserItemGraph"):
        LightGCN(NUM_USERS, NUM_ITEMS).encode(unsplit)
    with pytest.raises(ValueError, match=r"'num_users'.*got 40 in the data and 7"):
        LightGCN(7, NUM_ITEMS).encode(unsplit)
    with pytest.raises(ValueError, match=r"'embedding_dim'.*got 0"):
        LightGCN(7, 7, embedding_dim=0)
    with pytest.raises(ValueError, match=r"'num_layers'.*got -1"):
        LightGCN(7, 7, num_layers=-1)


def test_repr() -> None:
    assert repr(LightGCN(7, 5, 8)) == 'LightGCN(7, 5, 8, num_layers=3)'
