import numpy as np
import pyarrow as pa
import pytest

from hellm_pyg.datasets import InteractionFiles
from hellm_pyg.datasets.frames import Frame
from hellm_pyg.datasets.tables import as_source, column_names, read_table

LOG = {
    'customer': ['bob', 'ann', 'bob', 'ann', 'eve'],
    'sku': [20, 30, 10, 20, 30],
    'ordered_at': np.array(
        ['2024-05-03', '2024-05-02', '2024-05-01', '2024-05-01', '2024-05-02'],
        dtype='datetime64[us]',
    ),
}
CATALOGUE = {'sku': [30, 10, 20], 'name': ['C', None, 'B'], 'price': [3.5, 1.0, None]}
ARGUMENTS = {'time': 'ordered_at', 'item_id': 'sku', 'title': 'name'}


class Stream:
    """Nothing but the interface."""

    def __init__(self, columns):
        self.table = pa.table(columns)

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def reader(columns):
    return pa.table(columns).to_reader(max_chunksize=2)


def batch(columns):
    return pa.RecordBatch.from_pydict(columns)


def pandas(columns):
    return pytest.importorskip('pandas').DataFrame(columns)


def polars(columns):
    return pytest.importorskip('polars').DataFrame(columns)


def categories(columns):
    return pandas(columns).astype({next(iter(columns)): 'category'})


def polars_categories(columns):
    frame = polars(columns)
    kind = pytest.importorskip('polars').Categorical
    texts = [name for name in columns if isinstance(columns[name][0], str)]
    return frame.with_columns([frame[name].cast(kind) for name in texts])


def view_dictionaries(columns):
    table = pa.table(columns)
    for position, name in enumerate(table.column_names):
        if table[name].type == pa.string():
            texts = table[name].dictionary_encode().combine_chunks()
            words = texts.dictionary.cast(pa.string_view())
            texts = pa.DictionaryArray.from_arrays(texts.indices, words)
            table = table.set_column(position, name, texts)
    return table


LIBRARIES = [
    pa.table, Stream, reader, batch, pandas, categories, polars, polars_categories,
    view_dictionaries,
]  # fmt: skip


@pytest.mark.parametrize('make', LIBRARIES, ids=lambda make: make.__name__)
def test_frames_are_read_as_files_are(tmp_path, make):
    from pyarrow import parquet

    paths = {}
    for name, columns in (('log', LOG), ('items', CATALOGUE)):
        paths[name] = tmp_path / f'{name}.parquet'
        parquet.write_table(pa.table(columns), paths[name])
    of_files = InteractionFiles(
        tmp_path / 'files', paths['log'], items=paths['items'], **ARGUMENTS
    )
    root = tmp_path / 'frames'
    dataset = InteractionFiles(root, make(LOG), items=make(CATALOGUE), **ARGUMENTS)
    assert dataset.ids == of_files.ids
    assert dataset.ids.titles == ['', 'B', 'C']
    assert dataset.ids.users == ['ann', 'bob', 'eve']
    data, expected = dataset[0], of_files[0]
    assert data.fingerprint == expected.fingerprint
    assert data['item'].table['price'] == expected['item'].table['price']
    assert data['user', 'interacts', 'item'].time[0] == 1_714_521_600
    assert data.name == 'interactions'
    assert dataset.report['files'][0]['file'] is None
    assert dataset.report['guessed'] == ['user', 'item']


def test_the_cache_knows_frames_by_their_values(tmp_path, monkeypatch):
    first = InteractionFiles(tmp_path, pa.table(LOG), **ARGUMENTS)
    other = dict(LOG, sku=[20, 30, 10, 20, 31])
    assert Frame(pa.table(LOG), 'x').sha256 == Frame(Stream(LOG), 'y').sha256
    second = InteractionFiles(tmp_path, pa.table(other), **ARGUMENTS)
    renamed = pa.table(LOG).rename_columns(['customer', 'item', 'ordered_at'])
    third = InteractionFiles(tmp_path, renamed, **ARGUMENTS)
    folders = {d.processed_dir for d in (first, second, third)}
    assert len(folders) == 3

    def never(*args, **kwargs):
        raise AssertionError('read again')

    monkeypatch.setattr('hellm_pyg.datasets.interactions.read_log', never)
    again = InteractionFiles(tmp_path, pa.table(LOG), **ARGUMENTS)
    assert again.processed_dir == first.processed_dir
    assert again.report == first.report


def test_index_of_pandas_is_no_column():
    frame = pandas(LOG)
    assert column_names(as_source(frame[frame.sku > 10], 'items')) == list(LOG)
    by_sku = as_source(pandas(CATALOGUE).set_index('sku'), 'items')
    assert sorted(column_names(by_sku)) == ['name', 'price', 'sku']


def test_views_and_dictionaries(tmp_path):
    table = pa.table(
        {
            'user_id': pa.array(['b', 'a', 'b'], pa.string_view()),
            'item_id': pa.array(['7', '8', '9']).dictionary_encode(),
        }
    )
    dataset = InteractionFiles(tmp_path, table)
    assert (dataset.ids.users, dataset.ids.items) == (['a', 'b'], [7, 8, 9])


@pytest.mark.parametrize(
    ('value', 'says'),
    [
        (pa.table([[1], [2]], ['a', 'a']), "'items' has the column 'a' 2 times"),
        (pa.table({'a': [1]}), "'items' needs at least two columns .got 'a'"),
        (pa.table({'a': [], 'b': []}), "'items' has no rows"),
        (pa.array([1, 2]), "'items' cannot be read as an Arrow table"),
        (['a'], r"'items' needs a file or a table with '__arrow_c_stream__'.*got list"),
    ],
)
def test_bad_frames(value, says):
    with pytest.raises(ValueError, match=says):
        read_table(as_source(value, 'items'))


def test_mixed_types_of_pandas():
    frame = pandas({'user_id': [1, 'x'], 'item_id': [1, 2]})
    with pytest.raises(ValueError, match=r"'interactions' .*user_id.*astype\(str\)"):
        as_source(frame, 'interactions')


def test_missing_ids_name_the_argument(tmp_path):
    table = pa.table({'user_id': [1, None], 'item_id': [1, 2]})
    match = "'interactions': column 'user_id' is missing a value in row 2"
    with pytest.raises(ValueError, match=match):
        InteractionFiles(tmp_path, table)
    dataset = InteractionFiles(tmp_path, table, bad_rows='drop')
    assert dataset.report['dropped'] == {'missing user': 1}


def test_polars_enums_are_read(tmp_path):
    enum = pytest.importorskip('polars').Enum(['ann', 'bob', 'eve'])
    frame = polars(LOG)
    frame = frame.with_columns(frame['customer'].cast(enum))
    dataset = InteractionFiles(tmp_path, frame, time='ordered_at')
    assert dataset.ids.users == ['ann', 'bob', 'eve']
