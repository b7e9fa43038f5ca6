from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hellm_pyg import assembly
from hellm_pyg.config import load_config
from hellm_pyg.data import history_edges
from tests.shop import NUM_ITEMS, NUM_USERS, write_shop


def test_data_of_a_shop(tmp_path: Path) -> None:
    config = load_config(None, write_shop(tmp_path)).data
    data, ids = assembly.build_data(config)
    assert (ids.num_users, ids.num_items) == (NUM_USERS, NUM_ITEMS)
    assert data['item'].title[3] == 'Thing, 3'
    edges = data['item', 'member_of', 'text_hyperedge'].edge_index
    assert edges.size(1) == 4 * NUM_ITEMS
    assert 'ui_adj' in data
    rows = assembly.statistics(data)
    assert rows['users'] == rows['users with a target'] == NUM_USERS
    train = data['user', 'interacts', 'item'].edge_index.size(1)
    assert rows['interactions'] == train + 2 * NUM_USERS
    assert rows['training + test (as the article counts)'] == train + NUM_USERS
    assert rows['text features'] == '3 wide, 0 items without'
    assert rows['items without training'] == NUM_ITEMS - len(
        set(data['user', 'interacts', 'item'].edge_index[1].tolist())
    )


def test_interactions_after_the_dates_are_counted(tmp_path: Path) -> None:
    # Days of all users, rather than of one after the other.
    overrides, log = write_shop(tmp_path), tmp_path / 'log.csv'
    log.write_text(re.sub(r',\d*(\d\d)$', r',10\1', log.read_text(), flags=re.M))
    total = len(log.read_text().splitlines()) - 1
    dates = ['data.val_from=1002', 'data.test_from=1003']
    data, _ = assembly.build_data(load_config(None, [*overrides, *dates]).data)
    rows = assembly.statistics(data)
    assert int(str(rows['after the dates, in no split'])) > 0
    assert rows['interactions'] == total
    assert rows['history, mean'] == f'{total / NUM_USERS:.2f}'
    assert rows['history, longest'] == 6


def test_other_graphs_are_other_caches(tmp_path: Path) -> None:
    overrides = write_shop(tmp_path)
    for extra in ([], ['data.knn=5'], ['data.knn_direction=col'], []):
        assembly.build_data(load_config(None, [*overrides, *extra]).data)
    assert len(list((tmp_path / 'cache' / 'processed').iterdir())) == 3


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('data.user=custmer', "'data.user' names the column 'custmer'"),
        ('data.item_id=id', "'data.item_id' names the column 'id'"),
        ('data.min_count=-1', "'data.min_count' needs to be at least 0"),
        ('data.min_rating=3', "'data.min_rating' needs"),
        ('data.items=none.csv', "'data.items' is not a file"),
        ('data.features={text: no.npy}', "'data.features' is not a file"),
        ('data.knn=24', r"'data.knn' needs .*\(got k=24 and 24 such nodes\)"),
        ('data.knn=0', "'data.knn' needs to be at least 1"),
        ('data.drop_last=50', r"'data.drop_last' needs to be below 6, .*\(got 50\)"),
    ],
)
def test_errors_about_data_name_the_key_of_the_recipe(
    tmp_path: Path, override: str, message: str
) -> None:
    config = load_config(None, [*write_shop(tmp_path), override])
    with pytest.raises(ValueError, match=f'^{message}'):
        assembly.build_data(config.data)


def test_a_rehearsal_tests_on_the_validation_items(tmp_path: Path) -> None:
    overrides = write_shop(tmp_path)
    whole, ids = assembly.build_data(load_config(None, overrides).data)
    config = load_config(None, [*overrides, 'data.drop_last=1'])
    data, same = assembly.build_data(config.data)
    assert same.fingerprint == ids.fingerprint
    assert data.split_fingerprint != whole.split_fingerprint
    tested = data['user'].test_item >= 0
    assert torch.equal(data['user'].test_item[tested], whole['user'].val_item[tested])
    assert int(tested.sum()) > 0
    known = history_edges(data, 'all')
    for user, item in enumerate(whole['user'].test_item.tolist()):
        assert item not in known.item[known.user == user].tolist()
    dates = ['data.val_from=1002', 'data.test_from=1003', 'data.drop_last=1']
    with pytest.raises(ValueError, match=r"'data.drop_last' belongs to .*\(got 1 b"):
        assembly.build_data(load_config(None, [*overrides, *dates]).data)


def test_a_sample_of_the_users(tmp_path: Path) -> None:
    overrides = write_shop(tmp_path)
    whole, ids = assembly.build_data(load_config(None, overrides).data)
    config = load_config(None, [*overrides, 'data.sample=0.2'])
    data, same = assembly.build_data(config.data)
    assert same.fingerprint == ids.fingerprint
    assert data.fingerprint == whole.fingerprint
    assert data['user'].sample_mask.sum() == round(0.2 * NUM_USERS)
    assert 'sample_mask' not in whole['user']
    assert torch.equal(data.ui_adj.values(), whole.ui_adj.values())
    assert len(list((tmp_path / 'cache' / 'processed').iterdir())) == 1
    for share in (0, 1.5):
        wrong = load_config(None, [*overrides, f'data.sample={share}'])
        with pytest.raises(ValueError, match=rf"^'data.sample' needs .*\(got {share}"):
            assembly.build_data(wrong.data)
