"""The statistics of the data sets that results are reported on."""

import os
from pathlib import Path

import pytest
import torch

from hellm_pyg.datasets import InteractionFiles

FOLDER = os.environ.get('HELLM_DATA')
pytestmark = pytest.mark.skipif(
    not FOLDER, reason='HELLM_DATA does not name the folder of the staged data'
)


@pytest.mark.parametrize(
    ('name', 'users', 'items', 'edges', 'longest', 'over_50'),
    [
        ('beauty', 22_363, 12_101, 198_502, 204, 153),
        ('toys', 19_412, 11_924, 167_597, 550, 118),
        ('sports', 35_598, 18_357, 296_337, 296, 89),
    ],
)
def test_amazon(tmp_path, name, users, items, edges, longest, over_50):
    folder = Path(FOLDER) / f'amazon_{name}'
    dataset = InteractionFiles(
        tmp_path,
        folder / 'sequences.txt',
        items=folder / 'items.tsv',
        features={'text': folder / 'text_minilm384_fp16.npy'},
    )
    data = dataset[0]
    assert (data['user'].num_nodes, data['item'].num_nodes) == (users, items)
    user, item = data['user', 'interacts', 'item'].edge_index.as_tensor()
    assert user.numel() == edges
    length = torch.bincount(user)
    assert (int(length.min()), int(length.max())) == (5, longest)
    assert int(length.median()) == 6
    assert int((length > 50).sum()) == over_50
    assert int(torch.bincount(item).min()) == 5
    assert torch.unique(user * items + item).numel() == edges
    # Nothing is renumbered: internal ids are the original ones less one.
    assert dataset.ids.users == list(range(1, users + 1))
    assert dataset.ids.items == list(range(1, items + 1))
    first = (folder / 'sequences.txt').read_text().splitlines()[7].split()
    assert dataset.ids.item_id(item[user == 7]) == [int(i) for i in first[1:]]
    assert data['item'].x_text.shape == (items, 384)
    norm = data['item'].x_text.norm(dim=1)
    assert torch.allclose(norm, torch.ones(items), atol=1e-2)
    assert len(data['item'].title) == items
    rows = (folder / 'items.tsv').read_text().splitlines()
    assert data['item'].table['asin'][4999] == rows[5000].split('\t')[1]
    assert data.name == f'amazon_{name}'


def test_amazon_survives_a_5_core(tmp_path):
    path = Path(FOLDER) / 'amazon_toys' / 'sequences.txt'
    data = InteractionFiles(tmp_path, path, min_count=5)[0]
    assert data['user', 'interacts', 'item'].edge_index.size(1) == 167_597


def test_movielens(tmp_path):
    folder = Path(FOLDER) / 'movielens100k_mm'
    dataset = InteractionFiles(
        tmp_path,
        folder / 'interactions.tsv',
        time='timestamp',
        items=folder / 'items.tsv',
        features={'visual': folder / 'visual_mise_en_scene7.npy'},
    )
    data = dataset[0]
    store = data['user', 'interacts', 'item']
    assert (data['user'].num_nodes, data['item'].num_nodes) == (943, 1682)
    assert store.edge_index.size(1) == 100_000
    user = store.edge_index[0]
    assert (store.time[1:] >= store.time[:-1])[user[1:] == user[:-1]].all()
    present = ~data['item'].x_visual.isnan().any(dim=1)
    assert int(present.sum()) == 1043
    assert data['item'].title[0] == 'Toy Story'
    assert data['item'].table['ml25m_id'][:2] == [1, 10]
    assert data['item'].table['imdb_id'][0] == '0114709'
    assert dataset.ids.titles == data['item'].title
