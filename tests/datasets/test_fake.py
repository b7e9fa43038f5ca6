import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.transforms import ToUndirected

from hellm_pyg.datasets import FakeRecDataset


def test_schema():
    dataset = FakeRecDataset()
    data = dataset[0]
    data.validate()
    assert len(dataset) == 1
    assert str(dataset) == 'FakeRecDataset()'
    assert (data['user'].num_nodes, data['item'].num_nodes) == (200, 100)
    assert data['item'].x_image.shape == (100, 16)
    assert data['item'].x_text.shape == (100, 12)
    assert data['item'].x_image.isnan().all(dim=1).sum() == 10
    assert data['item'].title == dataset.ids.titles
    cluster = data['item'].table['cluster']
    assert data['item'].title[16] == f'Item 17 of cluster {cluster[16]}'
    assert dataset.ids.item_id(16) == 17
    assert dataset.ids.users == sorted(dataset.ids.users)
    assert data.name == 'Fake'
    edges = data['user', 'interacts', 'item'].edge_index
    assert isinstance(edges, EdgeIndex)
    edges.validate()
    assert edges.is_sorted_by_row
    assert edges.sparse_size() == (200, 100)


def test_histories():
    store = FakeRecDataset(num_users=50)[0]['user', 'interacts', 'item']
    user, item = store.edge_index.as_tensor()
    length = torch.bincount(user, minlength=50)
    assert int(length.min()) >= 3
    assert 8 < float(length.float().mean()) < 12
    assert torch.unique(user * 100 + item).numel() == user.numel()
    same = user[1:] == user[:-1]
    assert (store.time[1:] > store.time[:-1])[same].all()


def test_seed_decides_everything():
    first, again, other = (FakeRecDataset(seed=seed)[0] for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    edges = [d['user', 'interacts', 'item'].edge_index for d in (first, again)]
    assert torch.equal(edges[0].as_tensor(), edges[1].as_tensor())


def test_features_and_users_carry_the_cluster():
    data = FakeRecDataset(num_users=300, seed=1)[0]
    cluster = torch.tensor(data['item'].table['cluster'])
    for name in ('x_image', 'x_text'):
        x = data['item'][name]
        present = ~x.isnan().any(dim=1)
        x, own = x[present], cluster[present]
        nearest = torch.cdist(x, x).fill_diagonal_(torch.inf).argmin(dim=1)
        assert (own[nearest] == own).float().mean() > 0.95
    user, item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    assert (cluster[item] == user % 5).float().mean() > 0.8


def test_next_item_is_more_likely_than_its_cluster():
    data = FakeRecDataset(num_users=2000, seed=2)[0]
    user, item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    same = user[1:] == user[:-1]
    count = torch.zeros(100, 100)
    count.index_put_((item[:-1][same], item[1:][same]), torch.ones(()), accumulate=True)
    likely = count.max(dim=1).values / count.sum(dim=1)
    # Chance within the 20 items of a cluster is .05.
    assert float(likely.mean()) > 0.35


def test_options():
    data = FakeRecDataset(
        num_users=4,
        num_items=6,
        num_clusters=2,
        modalities={'audio': 3},
        avg_length=3,
        missing=0,
        pre_transform=ToUndirected(),
    )[0]
    assert data['item'].x_audio.shape == (6, 3)
    assert not data['item'].x_audio.isnan().any()
    assert 'x_image' not in data['item']
    assert data['item', 'rev_interacts', 'user'].edge_index.size(1) == 12
    assert data['user', 'interacts', 'item'].edge_index.size(1) == 12


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('num_users', 0),
        ('num_items', 5),
        ('num_clusters', 0),
        ('num_clusters', 101),
        ('avg_length', 2),
        ('missing', 1.0),
        ('missing', -0.1),
    ],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=rf"'{name}' needs .*got {value}\)"):
        FakeRecDataset(**{name: value})
