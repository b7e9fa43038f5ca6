"""The counts of the published files, where they lie on this machine."""

import os
import shutil
from pathlib import Path

import pytest

from hellm_pyg.datasets import AmazonReviews

from .amazon_files import file_names


@pytest.mark.parametrize(
    ('name', 'users', 'items', 'interactions'),
    [
        ('Beauty', 22_363, 12_101, 198_502),
        ('Sports', 35_598, 18_357, 296_337),
        ('Toys', 19_412, 11_924, 167_597),
    ],
)
def test_real_files(tmp_path, name, users, items, interactions):
    data = os.environ.get('HELLM_DATA')
    if data is None:
        pytest.skip('HELLM_DATA is not set')
    full = {'Sports': 'Sports_and_Outdoors', 'Toys': 'Toys_and_Games'}.get(name, name)
    raw = Path(data) / 'amazon' / 'raw' / '2014'
    files = [raw / file for file in file_names('2014', full)]
    for file in files:
        if not file.is_file():
            pytest.skip(f"there is no raw file '{file}'")
    folder = tmp_path / 'raw' / '2014'
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    dataset = AmazonReviews(tmp_path, name)
    edges = dataset[0]['user', 'interacts', 'item'].edge_index
    counts = (dataset.ids.num_users, dataset.ids.num_items, edges.size(1))
    assert counts == (users, items, interactions)
    assert dataset.report['dropped'] == {'repeated': 0, 'below min_count': 0}
    staged = Path(data) / f'amazon_{name.lower()}' / 'users.tsv'
    if staged.is_file():
        lines = staged.read_text().splitlines()[1:]
        assert sorted(line.split('\t')[1] for line in lines) == dataset.ids.users
