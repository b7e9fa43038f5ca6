from __future__ import annotations

import json
import os
import shutil
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet

from hellm_pyg.assembly import build_data, load_dataset
from hellm_pyg.checkpoint import save_tensors
from hellm_pyg.config import load_config
from hellm_pyg.preparation import Encoding, Prepared, prepare_table
from hellm_pyg.preparation import table as module

from .shop import (
    NO_PICTURE,
    NO_TEXT,
    NUM_ITEMS,
    NUM_USERS,
    write_orders,
    write_pictures,
)

DATES = {'val_from': '2024-02-15', 'test_from': '2024-02-25'}


def prepare(folder: Path, **arguments: Any) -> Prepared:
    orders, catalogue = write_orders(folder)
    arguments = {'items': catalogue, 'text': '', **arguments}
    return prepare_table(folder / 'ready', orders, **arguments)


def card(prepared: Prepared) -> dict[str, Any]:
    return json.loads((prepared.folder / 'data_card.json').read_text())


def read(prepared: Prepared) -> list[tuple[str, str, int]]:
    table = parquet.read_table(prepared.folder / 'interactions.parquet')
    return [tuple(row.values()) for row in table.to_pylist()]


def test_folder_in_own_ids(tmp_path: Path) -> None:
    prepared = prepare(tmp_path)
    assert sorted(path.name for path in prepared.folder.iterdir()) == [
        'cache', 'data_card.json', 'data_card.md', 'dataset.yaml',
        'interactions.parquet', 'items.parquet',
    ]  # fmt: skip
    orders = csv.read_csv(tmp_path / 'orders.csv').to_pylist()
    rows = read(prepared)
    assert sorted((user, item) for user, item, _ in rows) == sorted(
        (row['customer'], row['sku']) for row in orders
    )
    assert rows == sorted(rows, key=lambda row: (row[0], row[2]))
    assert rows[0][2] == 1704067200  # 2024-01-01
    items = parquet.read_table(prepared.folder / 'items.parquet').to_pylist()
    assert items[1] == {'sku': 'SKU-01', 'name': 'thing, blue', 'brand': 'Acme'}
    assert prepared.ids.users == [f'C-{user:02d}' for user in range(NUM_USERS)]
    assert prepared.data['user'].test_item.tolist()[0] == -1
    assert prepared.data.name == 'ready'
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == '.'] == []


def test_recipes_read_it_wherever_it_lies(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, name='mine')
    moved = tmp_path / 'else' / 'where'
    moved.parent.mkdir()
    shutil.move(prepared.folder, moved)
    for path in ('orders.csv', 'catalogue.csv'):
        (tmp_path / path).unlink()
    config = load_config('pretrain_best', ['data.knn=3', f'dataset={moved}'])
    assert (config.data.knn, config.data.features) == (3, {})
    data, ids = build_data(config.data)
    assert data.fingerprint == prepared.data.fingerprint
    assert ids == prepared.ids
    assert ids.titles is not None
    assert ids.titles[3] == 'thing, blue'
    assert data.name == 'mine'
    # The graph that was built on the way is the one that recipes read.
    assert len(list((moved / 'cache' / 'processed').iterdir())) == 1


def test_card_tells_what_was_dropped_and_guessed(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, min_rating=2, min_length=3)
    told = card(prepared)
    assert told['settings']['min_rating'] == 2
    dropped = told['dropped']
    assert dropped['interactions: below min_rating'] == 2 * NUM_USERS - 1
    assert dropped['interactions: below min_length'] == 1  # the other one of C-00
    assert told['counts']['interactions'] == 4 * (NUM_USERS - 1)
    assert told['counts']['users'] == prepared.ids.num_users == NUM_USERS - 1
    assert "'orders.csv': column 'stars' is read as the ratings." in told['notes']
    assert {file['name'] for file in told['files']} == {'orders.csv', 'catalogue.csv'}
    assert str(tmp_path) not in json.dumps(told)


def test_features_without_a_table_stay_with_their_items(tmp_path: Path) -> None:
    """One id of letters makes all ids text; when it is dropped, they are numbers."""
    rows = [f'u{u},{i},{i}' for u in range(4) for i in range(8, 13)]
    log = tmp_path / 'log.csv'
    log.write_text('user,item,time\n' + '\n'.join([*rows, 'u9,A7,1']) + '\n')
    order = sorted([*map(str, range(8, 13)), 'A7'])
    values = [0 if i == 'A7' else int(i) for i in order]
    np.save(tmp_path / 'x.npy', np.array(values, np.float32)[:, None])
    prepared = prepare_table(
        tmp_path / 'ready', log, min_count=2, features={'image': tmp_path / 'x.npy'}
    )
    config = load_config('sasrec', [f'dataset={prepared.folder}'])
    data, ids = build_data(config.data)
    for index, item in enumerate(ids.items):
        assert float(data['item'].x_image[index]) == float(item)


def test_dates_need_times(tmp_path: Path) -> None:
    log = tmp_path / 'log.csv'
    rows = [f'u{u},i{i}' for u in range(4) for i in range(6)]
    log.write_text('user,item\n' + '\n'.join(rows) + '\n')
    with pytest.raises(ValueError, match="'val_from' needs interactions with times"):
        prepare_table(tmp_path / 'ready', log, val_from=5, test_from=9)
    assert not (tmp_path / 'ready').exists()
    prepared = prepare_table(tmp_path / 'ready', log)
    assert prepared.ids.item_id(prepared.data['user'].test_item.tolist()) == ['i5'] * 4
    dates = ['data.val_from=5', 'data.test_from=9']
    config = load_config('sasrec', [f'dataset={prepared.folder}', *dates])
    with pytest.raises(ValueError, match='time'):
        build_data(config.data)


def test_text_and_pictures(
    tmp_path: Path, text_encoder: str, image_encoder: str
) -> None:
    encoding = Encoding(
        text_encoder=text_encoder,
        images=write_pictures(tmp_path / 'photos'),
        image_encoder=image_encoder,
        progress=False,
    )
    prepared = prepare(tmp_path, text='{name}. {brand}', encoding=encoding)
    item = prepared.data['item']
    assert item.x_text.shape == (NUM_ITEMS, 16)
    assert item.x_image.shape == (NUM_ITEMS, 12)
    assert item.x_text.isnan().all(dim=1).nonzero().view(-1).tolist() == [NO_TEXT]
    missing = item.x_image.isnan().all(dim=1).nonzero().view(-1).tolist()
    assert missing == list(NO_PICTURE)
    assert prepared.modalities == ['text', 'image']
    told = card(prepared)
    assert told['template'] == '{name}. {brand}'
    assert told['images']['read'] == NUM_ITEMS - 2
    assert told['modalities']['text']['encoder']['encoder'] == text_encoder
    assert told['modalities']['image']['present'] == NUM_ITEMS - 2
    config = load_config('pretrain_best', [f'dataset={prepared.folder}'])
    data = build_data(config.data)[0]
    assert torch.equal(data['item'].x_text.nan_to_num(), item.x_text.nan_to_num())


def test_the_title_is_the_text_unless_given(tmp_path: Path, text_encoder: str) -> None:
    encoding = Encoding(text_encoder=text_encoder, progress=False)
    prepared = prepare(tmp_path, text=None, encoding=encoding)
    assert card(prepared)['template'] == '{name}'
    assert "texts are made of '{name}'" in prepared.notes


def test_a_catalogue_without_a_title_is_told(tmp_path: Path) -> None:
    orders, catalogue = write_orders(tmp_path)
    table = catalogue.read_text().replace('name', 'label', 1)
    catalogue.write_text(table)
    prepared = prepare_table(tmp_path / 'ready', orders, items=catalogue)
    assert prepared.modalities == []
    (note,) = (note for note in prepared.notes if 'title' in note)
    assert 'no column is known as a title: no texts are encoded' in note


def test_pictures_alone_are_counted(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / 'photos')
    orders, _ = write_orders(tmp_path)
    prepared = prepare_table(
        tmp_path / 'ready', orders, encoding=Encoding(images=photos)
    )
    assert f"'{photos}': {NUM_ITEMS - 2} of {NUM_ITEMS}" in prepared.notes[-1]
    assert prepared.data['item'].table['image'][:4] == [
        '',
        '',
        'SKU-02.jpg',
        'SKU-03.png',
    ]
    assert prepared.modalities == []


def test_pictures_without_a_catalogue(tmp_path: Path, image_encoder: str) -> None:
    orders, _ = write_orders(tmp_path)
    encoding = Encoding(
        images=write_pictures(tmp_path / 'photos'),
        image_encoder=image_encoder,
        progress=False,
    )
    prepared = prepare_table(tmp_path / 'ready', orders, encoding=encoding)
    assert prepared.modalities == ['image']
    assert int(prepared.data['item'].x_image.isnan().all(dim=1).sum()) == 2


def test_features_of_ones_own(tmp_path: Path) -> None:
    x = torch.arange(NUM_ITEMS * 2.0).view(NUM_ITEMS, 2)
    from safetensors.torch import save_file

    save_file({'tags': x}, tmp_path / 'tags.safetensors')
    features = {'tags': tmp_path / 'tags.safetensors'}
    prepared = prepare(tmp_path, features=features)
    assert torch.equal(prepared.data['item'].x_tags, x)
    assert (prepared.folder / 'features' / 'tags.safetensors').is_file()


def test_hold_out_by_date(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, **DATES)
    user = prepared.data['user']
    first = {
        name: {
            u: item for u, item, time in reversed(read(prepared)) if low <= time < high
        }
        for name, low, high in (
            ('val', 1707955200, 1708819200),
            ('test', 1708819200, 1 << 60),
        )
    }
    for name, expected in first.items():
        target = user[f'{name}_item'].tolist()
        assert {
            prepared.ids.user_id(u): prepared.ids.item_id(i)
            for u, i in enumerate(target)
            if i >= 0
        } == expected
    assert 'by date: training before 2024-02-15' in card(prepared)['split']['how']
    config = load_config('sasrec', [f'dataset={prepared.folder}']).data
    assert (config.val_from, config.test_from) == ('2024-02-15', '2024-02-25')
    assert build_data(config)[0].fingerprint == prepared.data.fingerprint


def test_dates_of_pythons_own(tmp_path: Path) -> None:
    dates = {'val_from': date(2024, 2, 15), 'test_from': datetime(2024, 2, 25)}
    prepared = prepare(tmp_path, **dates)
    config = load_config('sasrec', [f'dataset={prepared.folder}']).data
    assert (config.val_from, config.test_from) == ('2024-02-15', '2024-02-25T00:00:00')


def test_names_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    odd = os.fsdecode(b'\xe9.npy')
    with (tmp_path / odd).open('wb') as file:
        np.save(file, np.ones((NUM_ITEMS, 3)))
    prepared = prepare(tmp_path, features={'image': tmp_path / odd})
    assert card(prepared)['files'][-1]['name'] == '\ufffd.npy'
    orders, _ = write_orders(tmp_path)
    orders = orders.rename(tmp_path / os.fsdecode(b'\xe9.csv'))
    with pytest.raises(ValueError, match=r'needs names in UTF-8.*�\.csv'):
        prepare_table(tmp_path / 'other', orders)


@pytest.mark.parametrize('details', [{}, {'made': {'in': 'Zürich'}, 'sizes': [1]}])
def test_columns_with_structure(tmp_path: Path, details: dict[str, Any]) -> None:
    log = pa.table({'user': [1, 1, 1], 'item': list('abc')})
    rows = [{'item': item, 'title': item, 'details': details} for item in 'abc']
    (tmp_path / 'items.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    prepared = prepare_table(
        tmp_path / 'ready', log, items=tmp_path / 'items.jsonl', text=''
    )
    written = parquet.read_table(prepared.folder / 'items.parquet')
    assert list(map(json.loads, written['details'].to_pylist())) == [details] * 3


def test_dates_of_times_that_are_numbers(tmp_path: Path) -> None:
    rows = [f'{u},{i},{10 * i}' for u in range(4) for i in range(5)]
    (tmp_path / 'log.csv').write_text('\n'.join(['user,item,time', *rows]) + '\n')
    arguments: dict[str, Any] = {'val_from': '30', 'test_from': '40'}
    prepared = prepare_table(
        tmp_path / 'ready', tmp_path / 'log.csv', time_unit='number', **arguments
    )
    assert prepared.data['user'].val_item.tolist() == [3] * 4
    assert prepared.data['user'].test_item.tolist() == [4] * 4
    for day in ('2024-01-01', date(2024, 1, 1)):
        arguments['val_from'] = day
        with pytest.raises(ValueError, match=r'needs an integer, .*2024\D+0?1\D+0?1'):
            prepare_table(
                tmp_path / 'other',
                tmp_path / 'log.csv',
                time_unit='number',
                **arguments,
            )
    assert not (tmp_path / 'other').exists()


def test_frames_and_files_give_the_same(tmp_path: Path) -> None:
    of_files = prepare(tmp_path)
    orders, catalogue = (
        csv.read_csv(tmp_path / f'{name}.csv', convert_options=csv.ConvertOptions())
        for name in ('orders', 'catalogue')
    )
    assert isinstance(orders, pa.Table)
    of_frames = prepare_table(
        tmp_path / 'frames', orders, items=catalogue, text='', name='ready'
    )
    assert of_frames.data.fingerprint == of_files.data.fingerprint
    assert read(of_frames) == read(of_files)


def test_prepared_again_from_what_was_prepared(tmp_path: Path) -> None:
    first = prepare(tmp_path)
    folder = tmp_path / 'ready'
    again = prepare_table(
        folder,
        folder / 'interactions.parquet',
        items=folder / 'items.parquet',
        text='',
        min_count=3,
    )
    assert again.ids.num_users == first.ids.num_users - 1
    assert build_data(load_config(None, [f'dataset={folder}']).data)[1] == again.ids


def test_a_stop_leaves_the_former_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(tmp_path)
    before = card(first)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    for place in ('export_tables', 'encode', 'complete'):
        monkeypatch.setattr(module, place, stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, min_count=2)
        with pytest.raises(KeyboardInterrupt):
            prepare_table(
                tmp_path / 'new',
                tmp_path / 'orders.csv',
                items=tmp_path / 'catalogue.csv',
            )
        monkeypatch.undo()
        assert card(first) == before
        assert not (tmp_path / 'new').exists()
    names = {path.name for path in tmp_path.iterdir() if path.name != 'xdg'}
    assert names == {'ready', 'orders.csv', 'catalogue.csv'}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'user': 'client'}, "'user' names the column 'client'"),
        ({'val_from': '2024-02-01'}, "'val_from' and 'test_from' make .* together"),
        ({'val_from': '2030-01-01', 'test_from': '2031-01-01'}, 'leave no val target'),
        ({'min_count': 50}, "'min_count' .* leave no interaction"),
        ({'text': '{nmae}'}, "'text' may name"),
        ({'items': 'gone.csv'}, "'items' is not a file"),
        ({'features': {'tags': 'orders.csv'}}, r"'features' needs a file .*\.npy"),
        ({'encoding': Encoding(images='gone')}, "'images' is not a folder"),
        ({'encoding': Encoding(image_column='x')}, "'image_column' needs 'images'"),
        ({'encoding': Encoding(image_encoder='x')}, "'image_encoder' needs 'images'"),
        (
            {'encoding': Encoding(images='.', image_column='file')},
            "'image_column' names the column 'file'",
        ),
    ],
)
def test_errors_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, **arguments)
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {'orders.csv', 'catalogue.csv', 'xdg'}


@pytest.mark.parametrize(
    ('dates', 'message'),
    [
        (('2024-02-15', 'soon'), "^'test_from' needs an ISO 8601 date"),
        (('2024-02-25', '2024-02-15'), "^'val_from' and 'test_from' need to ascend"),
        (('2034-02-15', '2034-02-25'), 'leave no val target'),
    ],
)
def test_dates_are_checked_before_texts_are_encoded(
    tmp_path: Path, dates: tuple[str, str], message: str
) -> None:
    encoding = Encoding(text_encoder='gone')
    with pytest.raises(ValueError, match="'text_encoder' needs"):
        prepare(tmp_path, text='{name}', encoding=encoding)
    given: dict[str, Any] = {'val_from': dates[0], 'test_from': dates[1]}
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, text='{name}', encoding=encoding, **given)


def test_an_encoder_of_images_that_is_not_there(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / 'photos')
    encoding = Encoding(images=photos, image_encoder='./gone', progress=False)
    with pytest.raises(ValueError, match=r"^'image_encoder' needs 'clip'"):
        prepare(tmp_path, encoding=encoding)


def test_texts_that_are_all_empty(tmp_path: Path) -> None:
    orders, catalogue = write_orders(tmp_path)
    rows = [f'SKU-{item:02d},,' for item in range(NUM_ITEMS)]
    catalogue.write_text('\n'.join(['sku,name,brand', *rows]))
    with pytest.raises(ValueError, match=rf"^'text' needs .*got {NUM_ITEMS} blanks"):
        prepare_table(tmp_path / 'ready', orders, items=catalogue)


def test_users_with_two_interactions_are_not_enough(tmp_path: Path) -> None:
    (tmp_path / 'log.csv').write_text('user,item\na,1\na,2\nb,1\nb,2\n')
    with pytest.raises(ValueError, match=r'no user has three .*2 users and 2 items'):
        prepare_table(tmp_path / 'ready', tmp_path / 'log.csv')
    assert [path.name for path in tmp_path.iterdir()] == ['log.csv']


def test_load_dataset_reads_the_prepared_graph(tmp_path: Path) -> None:
    prepared = prepare(tmp_path)
    config = load_config(None, [f'dataset={prepared.folder}'])
    folder = Path(load_dataset(config.data).processed_dir)
    assert folder.parent == prepared.folder / 'cache' / 'processed'


@pytest.mark.parametrize(('pictures', 'knn'), [(9, 8), (2, 1), (1, None)])
def test_few_items_with_a_picture_have_few_neighbours(
    tmp_path: Path, image_encoder: str, pictures: int, knn: int | None
) -> None:
    photos = write_pictures(tmp_path / 'photos')
    for path in sorted(photos.iterdir())[pictures:]:
        path.unlink()
    encoding = Encoding(images=photos, image_encoder=image_encoder, progress=False)
    prepared = prepare(tmp_path, encoding=encoding)
    plain = load_config('sasrec_best').data.knn
    config = load_config('sasrec_best', [f'dataset={prepared.folder}']).data
    assert prepared.modalities == (['image'] if knn else [])
    assert config.knn == (knn or plain)
    assert build_data(config)[0].fingerprint == prepared.data.fingerprint
    said = f"'data.knn' is at most {knn}" if knn else "'image' features are left out"
    assert said in prepared.notes[-1]
    assert f'{prepared.notes[-1]}.' in card(prepared)['notes']
    own = load_config('sasrec_best', ['data.knn=5', f'dataset={prepared.folder}'])
    assert own.data.knn == 5


def test_own_features_are_not_replaced(tmp_path: Path, text_encoder: str) -> None:
    x = torch.rand(NUM_ITEMS, 3)
    save_tensors(tmp_path / 'own.safetensors', {'text': x})
    arguments: dict[str, Any] = {'features': {'text': tmp_path / 'own.safetensors'}}
    encoding = Encoding(text_encoder=text_encoder, progress=False)
    prepared = prepare(tmp_path, text=None, encoding=encoding, **arguments)
    assert torch.equal(prepared.data['item'].x_text, x)
    with pytest.raises(ValueError, match="'text' features are given twice"):
        prepare(tmp_path, text='{name}', encoding=encoding, **arguments)
    arguments = {'features': {'image': tmp_path / 'own.safetensors'}}
    encoding = Encoding(images=tmp_path, image_encoder='clip')
    with pytest.raises(ValueError, match="'image' features are given twice"):
        prepare(tmp_path, encoding=encoding, **arguments)


@pytest.mark.parametrize('scale', [1, 1000])
def test_dates_in_the_unit_of_the_times(tmp_path: Path, scale: int) -> None:
    start = 1_714_521_600
    rows = [f'{u},{i},{(start + 10 * i) * 1000}' for u in range(4) for i in range(5)]
    (tmp_path / 'log.csv').write_text('\n'.join(['user,item,time', *rows]) + '\n')
    prepared = prepare_table(
        tmp_path / 'ready',
        tmp_path / 'log.csv',
        val_from=(start + 30) * scale,
        test_from=str((start + 40) * scale),
    )
    assert prepared.data['user'].val_item.tolist() == [3] * 4
    assert prepared.data['user'].test_item.tolist() == [4] * 4


def test_ids_of_64_bits_without_a_sign(tmp_path: Path) -> None:
    ids = pa.array([2**64 - 1, 2**63, 5, 7], pa.uint64())
    users = pa.array([2**63 + 1] * 4, pa.uint64())
    catalogue = pa.table({'item': ids, 'hash': ids, 'title': list('abcd')})
    log = pa.table({'user': users, 'item': ids})
    prepared = prepare_table(tmp_path / 'ready', log, items=catalogue, text='')
    assert prepared.ids.items == [5, 7, 2**63, 2**64 - 1]
    written = parquet.read_table(prepared.folder / 'items.parquet')
    assert written['hash'].to_pylist() == prepared.ids.items
    assert (
        build_data(load_config('sasrec', [f'dataset={prepared.folder}']).data)[1]
        == prepared.ids
    )
