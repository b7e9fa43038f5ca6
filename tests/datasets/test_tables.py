import gzip
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from hellm_pyg.datasets.tables import (
    checked_file,
    column_names,
    read_sequences,
    read_table,
    require_column,
)

PACKED = gzip.compress(b'user,item\n1,2\n', mtime=0)
ROWS = {'user': ['a', 'b'], 'note': ['x, "y"\nz', 'ü\t']}
TEXTS = {
    'log.csv': 'user,note\na,"x, ""y""\nz"\nb,ü\t\n',
    'log.jsonl': '{"user":"a","note":"x, \\"y\\"\\nz"}\n{"user":"b","note":"ü\\t"}\n',
}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('name', [*TEXTS, 'log.parquet'])
def test_read_table(tmp_path, name, packed):
    path = tmp_path / name
    if name in TEXTS:
        path.write_text(TEXTS[name])
    else:
        parquet.write_table(pa.table(ROWS), path)
    if packed:
        content = path.read_bytes()
        path = tmp_path / f'{name}.gz'
        path.write_bytes(gzip.compress(content))
    assert column_names(path) == ['user', 'note']
    assert read_table(path).to_pydict() == ROWS
    assert read_table(path, ['note']).to_pydict() == {'note': ROWS['note']}


def test_read_sequences(tmp_path, caplog):
    path = tmp_path / 'log.txt'
    path.write_text('u 3 1\n\n  v\tx  \nw\nu 2\n')
    assert read_sequences(path).to_pydict() == {
        'user': ['u', 'u', 'v', 'u'],
        'item': ['3', '1', 'x', '2'],
    }
    assert '1 of 4 lines hold a user without items' in caplog.text
    assert '1 of 4 lines begin with a user that an earlier one has' in caplog.text


@pytest.mark.parametrize(
    ('name', 'text', 'match'),
    [
        ('log.csv', 'a\n1\n', r"two columns .got 'a'.*'.tsv' by tabs"),
        (
            'log.csv',
            'a,b\n1,2\n1,2,3\n',
            r"log.csv. cannot be read as csv: row 2 has 3 columns .*of 2.*'1,2,3'",
        ),
        ('log.csv', 'a,b\n1,"2\n1,3\n', 'row of line 2 opens a quote.*close it'),
        (
            'log.csv',
            'a,b\r\n1,2\r\n1,"6 inch\r\n1,4\r\n1,"x\r\n1,5\r\n',
            'row of line 3 opens a quote.*, line 5.*close it',
        ),
        ('log.csv', 'a,b\n', 'log.csv. has no rows'),
        ('log.csv', 'a,b"c\n', 'log.csv. has no rows'),
        ('log.csv', b'a,b\n\xff,1\n', 'cannot be read as csv.*line 2 is not UTF-8'),
        ('log.parquet', 'a,b\n', 'cannot be read as parquet'),
        ('log.jsonl', 'a,b\n', 'cannot be read as jsonl'),
        (
            'log.jsonl',
            '{"a": 1, "b": 2}\n{"a": "x", "b": 2}\n',
            'cannot be read as jsonl',
        ),
        ('log.jsonl', '{"a": 1}\n', "two columns .got 'a'"),
        ('log.csv.gz', 'a,b\n', 'cannot be read as csv'),
    ],
)
def test_bad_tables(tmp_path, name, text, match):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=match):
        column_names(path) and read_table(path)


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        (b'\n \n', 'has no rows'),
        (b'1\n2\n', "lines of 'user item item ...' .got a single column.*'1'"),
        (b'\xff 1\n', 'cannot be read as txt'),
        (b'customer\tsku\tordered_at\na\tb\t1\n', "table, separated by tabs.*'.tsv'"),
        (b'"user_id";"item_id"\n1;2\n', "table, separated by semicolons.*'.csv'"),
    ],
)
def test_bad_sequences(tmp_path, text, match):
    path = tmp_path / 'log.txt'
    path.write_bytes(text)
    with pytest.raises(ValueError, match=match):
        read_sequences(path)


def test_checked_file(tmp_path):
    (tmp_path / 'ratings.csv').write_text('a,b\n')
    (tmp_path / 'empty.csv').write_text('')
    path = checked_file(tmp_path / 'ratings.csv', 'items', ['.csv'])
    assert path == (tmp_path / 'ratings.csv').resolve()
    (tmp_path / 'link.tsv').symlink_to(path)
    assert checked_file(tmp_path / 'link.tsv', 'items', ['.tsv']).name == 'link.tsv'
    with pytest.raises(
        ValueError, match=r"'items' is not a file.*mean '.*/ratings.csv'"
    ):
        checked_file(tmp_path / 'rating.csv', 'items', ['.csv'])
    with pytest.raises(
        ValueError, match=r"'items' is not a file .got '.*other.csv'\)$"
    ):
        checked_file(tmp_path / 'no' / 'other.csv', 'items', ['.csv'])
    with pytest.raises(ValueError, match=r"'items' is an empty file"):
        checked_file(tmp_path / 'empty.csv', 'items', ['.csv'])
    with pytest.raises(
        ValueError, match=r"ends in .csv, .tsv, each .* .got '.*a.xlsx'"
    ):
        checked_file(tmp_path / 'a.xlsx', 'items', ['.csv', '.tsv'])
    with pytest.raises(ValueError, match=r"ends in .npy .got '.*a.npy.gz'"):
        checked_file(tmp_path / 'a.npy.gz', 'features', ['.npy'], compressed=False)


def test_require_column(tmp_path):
    path = tmp_path / 'log.csv'
    require_column('b', ['a', 'b'], path, 'time')
    match = (
        "'time' names the column 'timestmp', which '.*log.csv' does not have .its "
        "columns: 'user', 'timestamp'.; did you mean time='timestamp'"
    )
    with pytest.raises(ValueError, match=match):
        require_column('timestmp', ['user', 'timestamp'], path, 'time')
    with pytest.raises(ValueError, match=r"'user', 'timestamp'\)$"):
        require_column('zzz', ['user', 'timestamp'], path, 'time')


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('log.csv', b'user,item', 'has no rows'),
        ('log.tsv', b'user\titem', 'has no rows'),
        ('log.csv', b'sep=;\nuser;item\n1;2\n', 'which only Excel reads: remove it'),
        ('log.csv', b'user,"item\n1,2\n', 'first line.*opens a quote'),
        ('log.csv', b'user,"item\n' + b'1,2\n' * 50_000, 'first line.*opens a quote'),
        ('log.csv', b'u' * 140_000 + b',item\n1,2\n', 'more than 128 KiB'),
        (
            'log.csv',
            gzip.compress(b'user,item\n1,2\n', mtime=0),
            "let its name end in '.gz'",
        ),
        ('log.csv', b'PK\x03\x04\xff', 'a zip archive or a spreadsheet'),
        ('log.json', b'[\n  {\n "user": 1\n }\n]\n', r"by 'jq -c \.\[\]'"),
    ],
)
def test_what_is_no_table_says_what_to_do(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'(?s){message}'):
        read_table(path)


def test_json_text_that_looks_like_a_date_stays_as_written(tmp_path):
    row = {'day': '2020-01-01', 'id': '2020-01-01 10:00:00', 'n': 1}
    (tmp_path / 'a.jsonl').write_text(json.dumps(row) + '\n')
    assert read_table(tmp_path / 'a.jsonl').to_pylist() == [row]
    assert read_table(tmp_path / 'a.jsonl', ['id']).to_pydict() == {'id': [row['id']]}
