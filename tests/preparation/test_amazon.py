from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hellm_pyg.assembly import build_data
from hellm_pyg.config import load_config
from hellm_pyg.preparation import Encoding, prepare_amazon
from tests.datasets.amazon_files import raw_files, write_raw

ITEMS = [f'B{number:03d}' for number in range(14)]
# Everybody reviews eight products, one after the other.
REVIEWS = [
    (f'A{user}', ITEMS[(user + step) % 14], 1_000_000_000 + 86_400 * step + user)
    for user in range(8)
    for step in range(8)
]


def write(root: Path, release: str = '2014') -> None:
    contents = raw_files(release, reviews=REVIEWS, items=ITEMS[1:])
    contents = (contents[0] + b'{"half": \n', contents[1])
    write_raw(root, release, 'Beauty', contents)


@pytest.mark.parametrize('release', ['2014', '2018', '2023'])
def test_folder(tmp_path: Path, text_encoder: str, release: str) -> None:
    write(tmp_path / 'raw', release)
    prepared = prepare_amazon(
        tmp_path / 'beauty',
        'Beauty',
        release,
        tmp_path / 'raw',
        min_count=2,
        template='{title} by {brand}',
        encoding=Encoding(text_encoder=text_encoder, progress=False),
    )
    assert prepared.ids.items == ITEMS
    item = prepared.data['item']
    assert item.table['text'][:2] == ['', "Women's brush B001 by Eco"]
    assert item.x_text.isnan().all(dim=1).nonzero().view(-1).tolist() == [0]
    told = json.loads((prepared.folder / 'data_card.json').read_text())
    assert told['source'] == f'Amazon reviews of {release}: Beauty'
    assert told['template'] == '{title} by {brand}'
    assert [n for why, n in told['dropped'].items() if 'no record' in why] == [1, 0]
    assert [len(file['sha256']) for file in told['files']] == [64, 64]
    config = load_config('pretrain_best', [f'dataset={prepared.folder}'])
    data, ids = build_data(config.data)
    assert data.fingerprint == prepared.data.fingerprint
    assert ids == prepared.ids
    assert data['user'].test_item.tolist() == [
        ITEMS.index(f'B{(user + 7) % 14:03d}') for user in range(8)
    ]


def test_bad_times_and_ids_are_counted(tmp_path: Path) -> None:
    bad = [
        ('A1', 'B001', 0),
        ('A1', 'B001', 10**12),
        ('A1', 'B001', 10**17),
        ('NULL', 'B001', 10**9),
    ]
    contents = raw_files('2014', reviews=[*bad, *REVIEWS], items=ITEMS)
    write_raw(tmp_path / 'raw', '2014', 'Beauty', contents)
    prepared = prepare_amazon(
        tmp_path / 'beauty', root=tmp_path / 'raw', min_count=0, template=''
    )
    assert prepared.ids.users == [f'A{user}' for user in range(8)]
    told = json.loads((prepared.folder / 'data_card.json').read_text())
    assert told['dropped']['lines of reviews_Beauty_5.json.gz: no record'] == 4


def test_split_by_date_and_no_features(tmp_path: Path) -> None:
    write(tmp_path / 'raw')
    arguments: dict[str, Any] = {'val_from': '2001-09-14', 'test_from': '2001-09-15'}
    prepared = prepare_amazon(
        tmp_path / 'beauty',
        root=tmp_path / 'raw',
        min_count=0,
        template='',
        **arguments,
    )
    assert prepared.modalities == []
    assert (prepared.data['user'].val_item >= 0).all()
    config = load_config('sasrec', [f'dataset={prepared.folder}'])
    assert config.data.features == {}
    assert config.data.val_from == '2001-09-14'


def test_errors_leave_nothing(tmp_path: Path) -> None:
    write(tmp_path / 'raw')
    for arguments, message in (
        ({'min_count': 50}, "'min_count' leaves no interaction"),
        ({'template': '{titel}'}, "'template' may name"),
        ({'name': '../x'}, "'name' needs letters"),
        ({'encoding': Encoding(text_encoder='./gone')}, 'gone'),
        ({'val_from': '2001-09-14'}, "'val_from' and 'test_from' make .* together"),
    ):
        given: dict[str, Any] = {'min_count': 2, **arguments}
        with pytest.raises(ValueError, match=message):
            prepare_amazon(tmp_path / 'beauty', root=tmp_path / 'raw', **given)
        assert {path.name for path in tmp_path.iterdir()} <= {'raw', 'xdg'}


def test_dates_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    for dates, message in (
        (('2001-09-14', 'soon'), "'test_from' needs an ISO 8601 date"),
        (('2001-09-15', '2001-09-14'), 'need to ascend'),
    ):
        given: dict[str, Any] = {'val_from': dates[0], 'test_from': dates[1]}
        with pytest.raises(ValueError, match=message):
            prepare_amazon(tmp_path / 'beauty', root=tmp_path / 'raw', **given)
        assert list(tmp_path.iterdir()) == []
