import sys

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from torch_geometric import EdgeIndex
from torch_geometric.data.datapipes import DatasetAdapter

from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph
from tests.builders import data_from_histories, rec_data

faiss = pytest.importorskip('faiss')


def item_data(**features):
    num_items = next(iter(features.values())).size(0)
    return data_from_histories([[0, 1, 2]], num_items, features)


def incidence(x, **kwargs):
    """Dense incidence of one modality."""
    out = KNNHyperedges(**kwargs)(item_data(text=x))
    dense = torch.zeros(x.size(0), x.size(0), dtype=torch.long)
    row, col = out['item', 'member_of', 'text_hyperedge'].edge_index.as_tensor()
    dense.index_put_((row, col), torch.ones_like(row), accumulate=True)
    return dense


def brute_force(x, k):
    similarity = F.normalize(x.double(), dim=-1) @ F.normalize(x.double(), dim=-1).t()
    index = similarity.topk(k, dim=-1).indices
    return torch.zeros(x.size(0), x.size(0), dtype=torch.long).scatter_(1, index, 1)


def clustered(num_items, num_clusters, width=16):
    torch.manual_seed(0)
    center = torch.randn(num_clusters, width)
    return center[torch.arange(num_items) % num_clusters] + 0.3 * torch.randn(
        num_items, width
    )


@pytest.mark.parametrize('k', [1, 4, 39])
@pytest.mark.parametrize('direction', ['row', 'col'])
def test_matches_brute_force(k, direction):
    torch.manual_seed(1)
    x = torch.randn(40, 6) * torch.logspace(-4, 4, 40).unsqueeze(-1)  # cosine, no scale
    expected = brute_force(x, k)
    if direction == 'col':
        expected = expected.t()
    assert torch.equal(incidence(x, k=k, direction=direction), expected)


def test_other_nodes_than_items():
    data = item_data(text=torch.randn(20, 4))
    users = torch.randn(30, 4)
    data['user'].num_nodes, data['user'].x_profile = 30, users
    out = KNNHyperedges(k=3, node_type='user')(data)
    index = out['user', 'member_of', 'profile_hyperedge'].edge_index.as_tensor()
    expected = incidence(users, k=3).nonzero().t()
    assert torch.equal(index, expected)
    assert ('item', 'member_of', 'text_hyperedge') not in out.edge_types
    out['user'].x_text = users
    with pytest.raises(ValueError, match=r"got 'text', of which 'item' has hyperedges"):
        KNNHyperedges(k=3, modalities=['text'], node_type='user')(
            KNNHyperedges(k=3)(out)
        )
    with pytest.raises(ValueError, match=r"'node_type' .*'user'.* \(got 'tag'\)"):
        KNNHyperedges(node_type='tag')(data)


def test_schema():
    data = rec_data(modalities={'text': 8, 'image': 5})
    out = KNNHyperedges(k=3)(data)
    assert out['text_hyperedge'].num_nodes == out['image_hyperedge'].num_nodes == 30
    assert len(data.edge_types) == 1
    assert out.fingerprint == data.fingerprint
    for name in ('text', 'image'):
        edge_index = out['item', 'member_of', f'{name}_hyperedge'].edge_index
        assert isinstance(edge_index, EdgeIndex)
        edge_index.validate()
        assert edge_index.is_sorted_by_row
        assert edge_index.sparse_size() == (30, 30)
        assert edge_index.size(1) == 90
        assert edge_index._T_perm is not None
        assert set(zip(range(30), range(30), strict=True)) <= set(
            zip(*edge_index.tolist(), strict=True)
        )
    out.validate()


def test_modalities_are_chosen_by_name():
    data = rec_data(modalities=('text', 'image'))
    out = KNNHyperedges(k=3, modalities=['image'])(data)
    assert 'image_hyperedge' in out.node_types
    assert 'text_hyperedge' not in out.node_types


@pytest.mark.parametrize('missing', [float('nan'), 0.0])
def test_missing_rows_join_nothing(missing):
    torch.manual_seed(2)
    x = torch.randn(30, 5)
    gone = torch.tensor([0, 7, 29])
    x[gone] = missing
    there = torch.ones(30, dtype=torch.bool)
    there[gone] = False
    got = incidence(x, k=6)
    assert not got[gone].any()
    assert not got[:, gone].any()
    assert torch.equal(got[there][:, there], brute_force(x[there], 6))


@pytest.mark.parametrize('index', ['flat', 'ivf'])
def test_duplicates_still_contain_themselves(index):
    x = torch.ones(60, 4)
    x[50:] = torch.randn(10, 4)
    got = incidence(x, k=5, index=index)
    assert bool((got.diagonal() == 1).all())
    assert bool((got.sum(dim=1) == 5).all())
    assert got.max() == 1
    assert not got[:50, 50:].any()


def test_item_permutation():
    torch.manual_seed(3)
    x = torch.randn(50, 7)
    perm = torch.randperm(50)
    assert torch.equal(incidence(x[perm], k=5), incidence(x, k=5)[perm][:, perm])


@pytest.mark.parametrize('index', ['flat', 'ivf'])
@pytest.mark.parametrize('block_size', [1, 33, 100, 1000])
def test_block_size_changes_nothing(index, block_size):
    x = clustered(100, 10)
    expected = incidence(x, k=5, index=index)
    got = incidence(x, k=5, index=index, block_size=block_size)
    assert torch.equal(got, expected)


def test_precision_and_gradient_of_the_features_do_not_matter():
    x = clustered(60, 5)
    expected = incidence(x, k=4)
    assert torch.equal(incidence(x.double(), k=4), expected)
    assert torch.equal(incidence(x.clone().requires_grad_(), k=4), expected)
    assert torch.equal(incidence(x.half(), k=4), brute_force(x.half().float(), 4))


def test_ivf_recall():
    x = clustered(3000, 60)
    got = incidence(x, k=10, index='ivf')
    exact = brute_force(x, 10)
    assert bool((got.sum(dim=1) == 10).all())
    assert bool((got.diagonal() == 1).all())
    assert (got * exact).sum() / exact.sum() > 0.97


def test_ivf_fills_up_from_the_exact_index():
    x = clustered(800, 20)  # 20 cells, 8 visited: fewer than 790 points
    got = incidence(x, k=790, index='ivf')
    assert torch.equal(got, brute_force(x, 790))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'k': 0}, r"'k' needs to be at least 1 \(got 0\)"),
        ({'k': 2.5}, r"'k' needs to be a whole number \(got 2.5\)"),
        ({'k': True}, r"'k' needs to be a whole number \(got True\)"),
        ({'block_size': 0}, r"'block_size' .* \(got 0\)"),
        ({'direction': 'both'}, r"'direction' .* \(got 'both'\)"),
        ({'index': 'hnsw'}, r"'index' .* \(got 'hnsw'\)"),
        ({'modalities': 'text'}, r"'modalities' .* \(got 'text'\)"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        KNNHyperedges(**kwargs)


def test_bad_data():
    x = torch.randn(20, 4)
    for k in (20, 21):
        with pytest.raises(ValueError, match=rf"'k' .* 'text' \(got k={k} and 20 such"):
            incidence(x, k=k)
    x[3:] = 0
    with pytest.raises(ValueError, match=r'got k=3 and 3 such nodes'):
        incidence(x, k=3)
    with pytest.raises(ValueError, match=r"'modalities' .*\['sound'\].*\['text'\]"):
        KNNHyperedges(modalities=['sound'])(item_data(text=x))
    with pytest.raises(ValueError, match=r"'modalities' .*\[\]"):
        KNNHyperedges()(data_from_histories([[0]], 3))
    for value in (float('nan'), float('inf')):
        x = torch.randn(20, 4)
        x[5, 2] = x[7, 0] = value
        with pytest.raises(ValueError, match=r"'x_text' .* 2 rows, .* first .* 5"):
            incidence(x, k=3)


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(
        ImportError, match=r"need the package 'faiss' \(pip install faiss-cpu\)"
    ):
        incidence(torch.randn(20, 4), k=3)


def test_one_thread_on_macos(monkeypatch):
    threads = []
    monkeypatch.setattr(sys, 'platform', 'darwin')
    monkeypatch.setattr(faiss, 'omp_get_max_threads', lambda: 6)
    monkeypatch.setattr(faiss, 'omp_set_num_threads', threads.append)
    incidence(torch.randn(20, 4), k=3)
    assert threads == [1, 6]


def test_composition():
    transform = T.Compose([LeaveOneOut(), UserItemGraph(), KNNHyperedges(k=3)])
    out = transform(rec_data())
    other = T.Compose([KNNHyperedges(k=3), LeaveOneOut(), UserItemGraph()])(rec_data())
    edge_type = ('item', 'member_of', 'text_hyperedge')
    assert out[edge_type].edge_index.equal(other[edge_type].edge_index)
    assert torch.equal(out.ui_adj.to_dense(), other.ui_adj.to_dense())
    (piped,) = DatasetAdapter([rec_data()]).knn_hyperedges(k=3)
    assert piped[edge_type].edge_index.equal(out[edge_type].edge_index)
    assert str(KNNHyperedges(k=3)) == 'KNNHyperedges(k=3)'


@pytest.mark.parametrize('shape', [(80, 8), (30, 8), (40,)])
def test_rows_of_other_items_are_refused(shape):
    data = item_data(text=torch.randn(40, 8))
    data['item'].num_nodes = 40
    data['item'].x_text = torch.randn(shape)
    with pytest.raises(ValueError, match=r"'x_text' needs a row for each .*\[40, F\]"):
        KNNHyperedges(k=3)(data)
