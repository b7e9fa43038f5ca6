import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file
from torch_geometric import EdgeIndex
from torch_geometric.transforms import BaseTransform

from hellm_pyg.datasets import InteractionFiles

# Users and items in scrambled order; bob's 20 and 10 have equal times.
ROWS = [
    ('bob', 20, 5, 4.0),
    ('ann', 30, 9, 5.0),
    ('bob', 10, 5, 2.0),
    ('ann', 20, 7, 3.0),
    ('eve', 30, 1, 5.0),
    ('bob', 30, 2, 1.0),
]
NAMES = ('who', 'what', 'when', 'stars')
COLUMNS = {'user': 'who', 'item': 'what', 'time': 'when'}
# (user, item, time) in internal ids: ann 0, bob 1, eve 2; 10 -> 0, 20 -> 1, 30 -> 2.
EDGES = [(0, 1, 7), (0, 2, 9), (1, 2, 2), (1, 1, 5), (1, 0, 5), (2, 2, 1)]


def write_rows(path: Path, rows=ROWS, names=NAMES) -> Path:
    if path.suffix in ('.csv', '.tsv'):
        comma = ',' if path.suffix == '.csv' else '\t'
        lines = [comma.join(map(str, row)) for row in [names, *rows]]
        path.write_text('\n'.join(lines) + '\n')
    elif path.suffix == '.jsonl':
        path.write_text(
            ''.join(
                json.dumps(dict(zip(names, row, strict=True))) + '\n' for row in rows
            )
        )
    else:
        columns = zip(*rows, strict=True)
        parquet.write_table(pa.table(dict(zip(names, columns, strict=True))), path)
    return path


def edges_of(data) -> list[tuple[int, ...]]:
    store = data['user', 'interacts', 'item']
    rows = torch.cat([store.edge_index.as_tensor(), store.time.view(1, -1)])
    return [tuple(row) for row in rows.t().tolist()]


@pytest.fixture
def log(tmp_path):
    return write_rows(tmp_path / 'log.csv')


@pytest.fixture
def load(tmp_path):
    def load(path, **kwargs):
        return InteractionFiles(tmp_path / 'cache', path, **kwargs)

    return load


@pytest.mark.parametrize('ending', ['csv', 'tsv', 'parquet', 'jsonl'])
def test_formats_agree(tmp_path, load, ending):
    dataset = load(write_rows(tmp_path / f'log.{ending}'), **COLUMNS)
    data = dataset[0]
    assert edges_of(data) == EDGES
    assert dataset.ids.users == ['ann', 'bob', 'eve']
    assert dataset.ids.items == [10, 20, 30]
    assert data.name == 'log'
    assert (
        data.fingerprint
        == load(write_rows(tmp_path / 'x.csv'), **COLUMNS)[0].fingerprint
    )


def test_sequence_text(tmp_path, load):
    path = tmp_path / 'shop' / 'sequences.txt'
    path.parent.mkdir()
    path.write_text('10 7 30 5\n9 30\n10 100\n')
    dataset = load(path)
    assert dataset.ids.users == [9, 10]
    assert dataset.ids.items == [5, 7, 30, 100]
    assert edges_of(dataset[0]) == [
        (0, 2, 0),
        (1, 1, 0),
        (1, 2, 1),
        (1, 0, 2),
        (1, 3, 3),
    ]
    assert dataset[0].name == 'shop'
    assert load(path, name='other')[0].name == 'other'


def test_graph(log, load):
    for _ in range(2):  # processed, then from the cache
        data = load(log, **COLUMNS)[0]
        data.validate()
        assert (data['user'].num_nodes, data['item'].num_nodes) == (3, 3)
        assert 'title' not in data['item']
        assert 'table' not in data['item']
        edges = data['user', 'interacts', 'item'].edge_index
        assert isinstance(edges, EdgeIndex)
        edges.validate()
        assert edges.is_sorted_by_row
        assert edges.sparse_size() == (3, 3)
        assert edges._indptr.tolist() == [0, 2, 5, 6]
        assert edges._T_indptr.tolist() == [0, 1, 3, 6]
        assert data['user', 'interacts', 'item'].time.dtype == torch.long


def test_without_times_the_order_is_the_files(tmp_path, load, caplog):
    rows = [(1, 9, 3), (2, 8, 2), (1, 8, 1)]
    path = write_rows(tmp_path / 'log.csv', rows, ('user_id', 'item_id', 'timestamp'))
    assert edges_of(load(path)[0]) == [(0, 1, 0), (0, 0, 2), (1, 0, 1)]
    assert "column 'timestamp' is read with time='timestamp'" in caplog.text
    assert edges_of(load(path, time='timestamp')[0])[0] == (0, 0, 1)


def test_sub_second_order(tmp_path, load):
    rows = [(1, 1, '1.9'), (1, 2, '1.1'), (1, 3, '1.5')]
    path = write_rows(tmp_path / 'log.csv', rows, ('user_id', 'item_id', 't'))
    assert edges_of(load(path, time='t')[0]) == [(0, 1, 1), (0, 2, 1), (0, 0, 1)]


def test_repeated_interactions_keep_the_earliest(tmp_path, load, caplog):
    rows = [*ROWS, ('ann', 30, 8, 1.0), ('eve', 30, 1, 1.0), ('ann', 30, 12, 1.0)]
    data = load(write_rows(tmp_path / 'log.csv', rows), **COLUMNS)[0]
    assert edges_of(data) == [(0, 1, 7), (0, 2, 8), *EDGES[2:]]
    assert '3 of 9 interactions repeat a user and an item' in caplog.text


def test_min_rating(log, load):
    dataset = load(log, **COLUMNS, rating='stars', min_rating=3)
    assert dataset.ids.users == ['ann', 'bob', 'eve']
    assert dataset.ids.items == [20, 30]
    assert edges_of(dataset[0]) == [(0, 0, 7), (0, 1, 9), (1, 0, 5), (2, 1, 1)]


def test_min_count_is_iterated(log, load):
    # Item 10 has one edge and eve has one; ann and bob keep 20 and 30.
    dataset = load(log, **COLUMNS, min_count=2)
    assert dataset.ids.users == ['ann', 'bob']
    assert dataset.ids.items == [20, 30]
    assert edges_of(dataset[0]) == [(0, 0, 7), (0, 1, 9), (1, 1, 2), (1, 0, 5)]


def test_min_length_drops_users_alone(log, load):
    # eve has one interaction, item 10 too: eve goes, the item stays.
    dataset = load(log, **COLUMNS, min_length=2)
    assert dataset.ids.users == ['ann', 'bob']
    assert dataset.ids.items == [10, 20, 30]
    # With ann, items 20 and 30 fall below 2, and so does bob.
    dataset = load(log, **COLUMNS, min_length=3)
    assert dataset.ids.users == ['bob']
    with pytest.raises(ValueError, match=r'leave no .*min_count=2, min_length=3'):
        load(log, **COLUMNS, min_length=3, min_count=2)


def test_report_accounts_for_every_row(tmp_path, load):
    may = 1_714_521_600
    rows = [
        ('ann', 1, may, 5),
        ('ann', 2, may + 1, 4),
        ('ann', 1, may + 2, 5),  # repeated
        ('bob', 1, may, 5),
        ('bob', 2, may, 1),  # below min_rating
        ('bob', 2, may + 9, 4),
        ('eve', 3, may, 5),  # below min_count
        ('', 1, may, 5),
        ('ann', 'nan', may, 5),
        ('bob', 3, -1, 5),
        ('bob', 3, 99999999999, 5),
        ('bob', 3, 'soon', 5),
        ('bob', 3, may, 'good'),
    ]
    path = write_rows(tmp_path / 'log.csv', rows, ('customer', 'item_id', 'when', 'r'))
    items = tmp_path / 'items.csv'
    items.write_text('item_id,title\n2,b\n9,c\n')
    for _ in range(2):  # processed, then from the cache
        dataset = load(
            path,
            item='item_id',
            time='when',
            rating='r',
            min_rating=2,
            min_count=2,
            items=items,
            bad_rows='drop',
        )
        report = dataset.report
        assert report['dropped'] == {
            'missing user': 1,
            'missing item': 1,
            'unreadable time': 1,
            'time not after 1970': 1,
            'time in the future': 1,
            'missing rating': 1,
            'below min_rating': 1,
            'repeated': 1,
            'below min_count': 1,
        }
        assert report['read'] == {'users': 3, 'items': 3, 'interactions': 13}
        kept = {'users': 2, 'items': 2, 'interactions': 4, 'name': 'log'}
        assert report.items() >= kept.items()
        assert kept['interactions'] + sum(report['dropped'].values()) == 13
        assert report['guessed'] == ['user']
        assert report['columns'] == {
            'user': 'customer',
            'item': 'item_id',
            'time': 'when',
            'rating': 'r',
        }
        assert report['time'] == {
            'unit': 's',
            'read_as': 's',
            'first': may,
            'last': may + 9,
        }
        assert report['item_table'] == {
            'rows': 2,
            'items without a row': 1,
            'rows without interactions': 1,
        }
        assert [f['file'] for f in report['files']] == ['log.csv', 'items.csv']
        assert dataset[0].time_unit == 's'
    assert hashlib.sha256(path.read_bytes()).hexdigest() == report['files'][0]['sha256']


def test_core_counts_repeated_interactions_once(tmp_path, load):
    rows = [(1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (3, 2)]
    path = write_rows(tmp_path / 'log.csv', rows, ('user_id', 'item_id'))
    assert load(path, min_count=2).ids.users == [1, 2]


def test_users_with_one_or_two_interactions_stay(tmp_path, load):
    path = tmp_path / 'log.txt'
    path.write_text('1 5\n2 5 6\n3 6 5 7\n')
    dataset = load(path)
    assert dataset.ids.users == [1, 2, 3]
    assert dataset[0]['user', 'interacts', 'item'].edge_index.size(1) == 6


def test_item_table_and_features_follow_its_order(tmp_path, load, log):
    items = tmp_path / 'items.tsv'
    items.write_text(
        'item_id\ttitle\tyear\tcode\n30\tC\t1999\t07\n10\tA\t\t1\n20\tB\t7\t2\n'
    )
    image = np.array([[3.0, 3], [np.nan, np.nan], [2, 2]], dtype=np.float16)
    np.save(tmp_path / 'image.npy', image)
    save_file(
        {'text': torch.tensor([[3.0], [1], [2]]), 'mask': torch.tensor([1, 1, 0])},
        tmp_path / 'text.safetensors',
    )
    features = {'image': tmp_path / 'image.npy', 'text': tmp_path / 'text.safetensors'}
    for _ in range(2):
        dataset = load(log, **COLUMNS, items=items, features=features)
        item = dataset[0]['item']
        assert item.title == dataset.ids.titles == ['A', 'B', 'C']
        assert item.table == {'year': [None, 7, 1999], 'code': ['1', '2', '07']}
        assert item.x_image.dtype == torch.float32
        assert item.x_image.nan_to_num(-1).tolist() == [[-1, -1], [2, 2], [3, 3]]
        assert item.x_text.nan_to_num(-1).tolist() == [[1], [-1], [3]]


def test_features_without_a_table_follow_the_ids_of_the_file(tmp_path, load, log):
    np.save(tmp_path / 'x.npy', np.array([[10.0], [20], [30]]))
    features = {'text': tmp_path / 'x.npy'}
    data = load(log, **COLUMNS, features=features)[0]
    assert data['item'].x_text.view(-1).tolist() == [10, 20, 30]
    # Item 10 falls to the 2-core: the rows still count it.
    data = load(log, **COLUMNS, features=features, min_count=2)[0]
    assert data['item'].x_text.view(-1).tolist() == [20, 30]


def test_items_of_one_file_alone(tmp_path, load, log, caplog):
    items = tmp_path / 'items.csv'
    items.write_text('id,name,year\n30,C,3\n40,D,4\n20,B,2\n50,E,5\n')
    np.save(tmp_path / 'x.npy', np.array([[3.0], [4], [2], [5]]))
    dataset = load(
        log,
        **COLUMNS,
        items=items,
        item_id='id',
        title='name',
        features={'text': tmp_path / 'x.npy'},
    )
    item = dataset[0]['item']
    assert dataset.ids.items == [10, 20, 30]
    assert item.title == ['', 'B', 'C']
    assert item.table == {'year': [None, 2, 3]}
    assert item.x_text.view(-1).nan_to_num(-1).tolist() == [-1, 2, 3]
    assert (
        '1 of 3 items have no row and stay without text and features: 10' in caplog.text
    )
    assert (
        '2 of 4 items are in no interaction that is kept, and left out' in caplog.text
    )


def test_ids_agree_across_file_types(tmp_path, load):
    rows = [('u', '007'), ('u', '8')]
    path = write_rows(tmp_path / 'log.csv', rows, ('user_id', 'item_id'))
    items = tmp_path / 'items.parquet'
    parquet.write_table(pa.table({'item_id': ['8', '007'], 'title': ['b', 'a']}), items)
    assert load(path, items=items).ids.titles == ['a', 'b']
    path = write_rows(
        tmp_path / 'log.csv', [('u', 7), ('u', 8)], ('user_id', 'item_id')
    )
    parquet.write_table(pa.table({'item_id': ['8', '7'], 'title': ['b', 'a']}), items)
    dataset = load(path, items=items)
    assert dataset.ids.items == [7, 8]
    assert dataset.ids.titles == ['a', 'b']


def test_no_warning_where_files_match(tmp_path, load, log, caplog):
    items = tmp_path / 'items.csv'
    items.write_text('item_id,title\n10,a\n20,b\n30,c\n')
    with caplog.at_level(logging.INFO):
        load(log, **COLUMNS, items=items)
    assert {r.levelname for r in caplog.records} == {'INFO'}
    assert "'when' is read as plain numbers, of no known unit" in caplog.text
    assert '3 users, 3 items, 6 of 6 interactions' in caplog.text


class Mark(BaseTransform):
    calls = 0

    def __init__(self, value):
        self.value = value

    def forward(self, data):
        Mark.calls += 1
        data.mark = self.value
        return data


def test_cache_is_used_and_transforms_are_applied(log, load, tmp_path, monkeypatch):
    first = load(log, **COLUMNS, pre_transform=Mark(1), transform=Mark(2))
    assert first[0].mark == 2
    assert first._data.mark == 1

    def never(*args, **kwargs):
        raise AssertionError('read again')

    calls = Mark.calls
    monkeypatch.setattr('hellm_pyg.datasets.interactions.read_log', never)
    again = load(log, **COLUMNS, pre_transform=Mark(1))
    assert again[0].mark == 1
    assert Mark.calls == calls
    assert again.ids == first.ids
    assert again.processed_dir == first.processed_dir
    with pytest.raises(AssertionError, match='read again'):
        load(log, **COLUMNS, pre_transform=Mark(1), force_reload=True)
    with pytest.raises(AssertionError, match='read again'):
        load(log, **COLUMNS, pre_transform=Mark(3))


def test_other_input_is_another_cache(log, load, tmp_path):
    items, x = tmp_path / 'items.csv', tmp_path / 'x.npy'
    items.write_text('item_id,title\n10,a\n20,b\n30,c\n')
    np.save(x, np.ones((3, 2)))
    folders = [
        load(log, **COLUMNS, **kwargs).processed_dir
        for kwargs in (
            {},
            {'min_count': 2},
            {'rating': 'stars', 'min_rating': 3},
            {'items': items},
            {'items': items, 'title': None},
            {'features': {'text': x}},
            {'features': {'image': x}},
            {'name': 'other'},
        )
    ]
    folders.append(load(log, user='who', item='what').processed_dir)
    np.save(x, np.zeros((3, 2)))
    folders.append(load(log, **COLUMNS, features={'text': x}).processed_dir)
    write_rows(log, ROWS[:-1])
    folders.append(load(log, **COLUMNS).processed_dir)
    assert len(set(folders)) == len(folders)
    assert all(Path(folder).is_relative_to(tmp_path / 'cache') for folder in folders)


def test_fingerprint_reads_edges_times_ids_and_features(tmp_path, load):
    def fingerprint(rows, x=None):
        path = write_rows(tmp_path / 'log.csv', rows, ('user_id', 'item_id', 't'))
        features = None
        if x is not None:
            np.save(tmp_path / 'x.npy', np.array(x))
            features = {'text': tmp_path / 'x.npy'}
        return load(path, time='t', features=features)[0].fingerprint

    rows = [(1, 1, 1), (2, 2, 2)]
    prints = [
        fingerprint(rows),
        fingerprint([(1, 1, 1), (2, 2, 3)]),
        fingerprint([(1, 2, 1), (2, 1, 2)]),
        fingerprint([(1, 1, 1), (3, 2, 2)]),
        fingerprint(rows, [[1.0], [2.0]]),
        fingerprint(rows, [[1.0], [3.0]]),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(rows[::-1]) == prints[0]


def test_failed_processing_leaves_no_cache(log, load, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(InteractionFiles, 'save', full)
        with pytest.raises(OSError, match='No space'):
            load(log, **COLUMNS)
    assert list((tmp_path / 'cache' / 'processed').iterdir()) == []
    assert edges_of(load(log, **COLUMNS)[0]) == EDGES
    with monkeypatch.context() as patch:
        patch.setattr(InteractionFiles, 'save', full)
        with pytest.raises(OSError, match='No space'):
            load(log, **COLUMNS, force_reload=True)
        assert edges_of(load(log, **COLUMNS)[0]) == EDGES


def test_killed_processing_leaves_no_cache(log, load, tmp_path):
    code = (
        'import os, signal, sys\n'
        'from hellm_pyg.datasets import InteractionFiles, IdMap\n'
        'save = IdMap.save\n'
        'def save_and_die(ids, path):\n'
        '    save(ids, path)\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
        'IdMap.save = save_and_die\n'
        f'InteractionFiles(sys.argv[1], sys.argv[2], **{COLUMNS!r})\n'
    )
    run = subprocess.run([sys.executable, '-c', code, tmp_path / 'cache', log])
    assert run.returncode == -9
    left = [p.name for p in (tmp_path / 'cache' / 'processed').iterdir()]
    assert len(left) == 1
    assert left[0].startswith('.tmp-')
    assert edges_of(load(log, **COLUMNS)[0]) == EDGES


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'user': 'whom'}, "'user' names the column 'whom'.*did you mean user='who'"),
        ({'user': None}, "'user' names the column 'user_id'.*'who', 'what', 'when'"),
        ({'item': 'wat'}, "'item' names the column 'wat'.*item='what'"),
        ({'time': 'then'}, "'time' names the column 'then'.*time='when'"),
        ({'rating': 'star', 'min_rating': 1}, "'rating' names the column 'star'"),
        ({'min_rating': 1}, "'min_rating' needs the column of the ratings as 'rating'"),
        ({'min_count': -1}, r"'min_count' needs to be at least 0 .got -1"),
        ({'min_count': 9}, r'leave no interaction.*min_count=9'),
        ({'rating': 'stars', 'min_rating': 6}, r'leave no interaction.*min_rating=6'),
        ({'item': 'who'}, r"'user' and 'item' need two columns.*got 'who' for both"),
        ({'time': 'who'}, r"'user' and 'time' need two columns.*got 'who' for both"),
        ({'min_length': -1}, r"'min_length' needs to be at least 0 .got -1"),
        ({'min_length': 9}, r'leave no interaction.*min_length=9'),
        ({'features': {'a b': 'x.npy'}}, r"modality names .* .got 'a b'"),
        ({'features': 'x.npy'}, r"'features' needs to map .* .got 'x.npy'"),
        ({'features': {'a': np.ones(3)}}, r"'features' needs files, .*got a ndarray"),
        ({'features': {'a': 'x.npy'}}, r"'features' is not a file .got 'x.npy'"),
        ({'features': {'a': 'x.csv'}}, r"'features' .* ends in .npy, .safetensors"),
        ({'items': 'none.csv'}, r"'items' is not a file .got 'none.csv'"),
        ({'items': 'items.txt'}, r"'items' .* ends in .csv, .tsv"),
    ],
)
def test_bad_arguments(log, load, kwargs, match):
    with pytest.raises(ValueError, match=match):
        load(log, **{**COLUMNS, **kwargs})


@pytest.mark.parametrize(
    ('name', 'text', 'match'),
    [
        ('log.csv', '', "'interactions' is an empty file"),
        ('log.csv', 'user_id,item_id\n', 'has no rows'),
        ('log.csv', 'user_id\n1\n', 'at least two columns'),
        (
            'log.csv',
            'user_id,item_id\n1,2\n1,\n',
            "'item_id' is missing a value in row 2",
        ),
        (
            'log.csv',
            'user_id,item_id\nnan,2\n',
            "'user_id' is missing a value in row 1",
        ),
        ('log.txt', '1\n2\n', "lines of 'user item item ...'"),
        ('log.xlsx', 'x', r"ends in .txt, .csv, .tsv, .parquet.*with .gz .got '.*xlsx"),
    ],
)
def test_bad_files(tmp_path, load, name, text, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=match):
        load(tmp_path / name)


def test_missing_file(load, log):
    with pytest.raises(
        ValueError, match=r"'interactions' is not a file.*mean '.*log.csv"
    ):
        load(log.with_name('logs.csv'))


def test_sequence_text_has_no_columns(tmp_path, load):
    (tmp_path / 'log.txt').write_text('1 2 3\n')
    with pytest.raises(ValueError, match=r"'time' names a column, but sequence text"):
        load(tmp_path / 'log.txt', time='when')


@pytest.mark.parametrize(
    ('text', 'kwargs', 'match'),
    [
        ('itemid,title\n10,a\n', {}, "names the column 'item_id'.*item_id='itemid'"),
        ('item_id,name\n10,a\n', {'title': 'nam'}, "'title' names.*title='name'"),
        ('item_id,title\n10,a\n20,b\n10,c\n', {}, '10 in rows 1 and 3'),
        ('item_id,title\n10,a\n,b\n', {}, "'item_id' is missing a value in row 2"),
        ('item_id,title\nA1,a\nB1,b\n', {}, "shares no id.*'A1', 'B1'.*10, 20, 30"),
        ('item_id\n10\n', {}, 'at least two columns'),
    ],
)
def test_bad_item_table(tmp_path, load, log, text, kwargs, match):
    items = tmp_path / 'items.csv'
    items.write_text(text)
    with pytest.raises(ValueError, match=match):
        load(log, **COLUMNS, items=items, **kwargs)


def test_bad_features_name_file_and_what_the_rows_follow(tmp_path, load, log):
    path = tmp_path / 'x.npy'
    np.save(path, np.ones((4, 2)))
    match = r"'text' .'.*x.npy'. needs 3 rows.*log.csv' .or give an item table.*got 4"
    with pytest.raises(ValueError, match=match):
        load(log, **COLUMNS, features={'text': path})
    items = tmp_path / 'items.csv'
    items.write_text('item_id,title\n40,d\n30,c\n')
    with pytest.raises(ValueError, match=r'needs 2 rows.*items.csv.*got 4'):
        load(log, **COLUMNS, items=items, features={'text': path})
    np.save(path, np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match='has no row for any item'):
        load(log, **COLUMNS, items=items, features={'text': path})


def test_damaged_cache_says_what_to_do(log, load):
    folder = Path(load(log, **COLUMNS).processed_dir)
    (folder / 'data.pt').write_bytes(b'half')
    with pytest.raises(ValueError, match=r'cannot be read.*force_reload=True'):
        load(log, **COLUMNS)
    assert edges_of(load(log, **COLUMNS, force_reload=True)[0]) == EDGES
    for content in ('[]', '{"name'):
        (folder / 'report.json').write_text(content)
        with pytest.raises(ValueError, match=r'report\.json.*force_reload=True'):
            load(log, **COLUMNS)


def test_a_cached_graph_is_read_without_warnings_of_torch(tmp_path):
    path = write_rows(tmp_path / 'log.csv', [(*row[:2], *row[2:]) for row in ROWS])
    code = (
        'import sys\n'
        'from torch_geometric.transforms import Compose\n'
        'from hellm_pyg.datasets import InteractionFiles\n'
        'from hellm_pyg.transforms import LeaveOneOut, UserItemGraph\n'
        'split = Compose([LeaveOneOut(), UserItemGraph()])\n'
        "columns = {'user': 'who', 'item': 'what', 'time': 'when'}\n"
        'InteractionFiles(*sys.argv[1:], **columns, pre_transform=split)\n'
    )
    script = [sys.executable, '-c', code, str(tmp_path / 'cache'), str(path)]
    for _ in range(2):  # made, and read
        found = subprocess.run(script, capture_output=True, text=True, check=True)
    assert 'Sparse CSR' not in found.stderr
