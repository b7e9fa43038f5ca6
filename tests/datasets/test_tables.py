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


def test_delimited_columns_stay_text(tmp_path):
    path = tmp_path / 'log.tsv'
    path.write_bytes('\ufeffid\tname\n007\t"half\n8\t2014-01-01\n'.encode())
    table = read_table(path)
    assert table.to_pydict() == {'id': ['007', '8'], 'name': ['"half', '2014-01-01']}


@pytest.mark.parametrize('name', ['log.csv', 'log.tsv'])
@pytest.mark.parametrize('mark', [',', '\t', ';', '|'])
def test_the_only_delimiter_of_the_header_is_meant(tmp_path, caplog, name, mark):
    path = tmp_path / name
    path.write_text(f'user{mark}item\na b{mark}"1"\n')
    usual = ',' if name == 'log.csv' else '\t'
    quoted = '"1"' if (name, mark) == ('log.tsv', '\t') else '1'
    assert column_names(path) == ['user', 'item']
    assert read_table(path).to_pydict() == {'user': ['a b'], 'item': [quoted]}
    assert ('columns are taken to be separated by' in caplog.text) == (mark != usual)


def test_quoted_line_breaks_and_quotes_within_values_are_read(tmp_path):
    path = tmp_path / 'log.csv'
    long = 'x\n' * 100_000
    path.write_bytes(f'a,b\r1,"2\r3"\r\n\n4,6" x 9"\n5,"{long}"\n\n'.encode())
    assert read_table(path).to_pydict() == {
        'a': ['1', '4', '5'],
        'b': ['2\r3', '6" x 9"', long],
    }


def test_a_header_may_hold_anything_in_quotes(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_bytes(b',"the ""user""","it;em\n2"\r\n0,a,"b\nc"\r\n')
    names = ['the "user"', 'it;em\n2']
    assert column_names(path) == names
    values = read_table(path).to_pydict()
    assert values == dict(zip(names, [['a'], ['b\nc']], strict=True))


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


@pytest.mark.parametrize(
    ('name', 'content', 'rows'),
    [
        ('a.tsv', '"user"\t"item"\n"a"\t"b\tc"\n', {'user': ['a'], 'item': ['b\tc']}),
        ('a.tsv', '"user\titem\n"a\tb\n', {'"user': ['"a'], 'item': ['b']}),
        ('a.csv', '"us\ner",item\na,b\n', {'us\ner': ['a'], 'item': ['b']}),
    ],
)
def test_quotes_of_the_header(tmp_path, name, content, rows):
    (tmp_path / name).write_bytes(content.encode())
    assert column_names(tmp_path / name) == list(rows)
    assert read_table(tmp_path / name).to_pydict() == rows


def test_a_wide_header_is_read(tmp_path):
    names = [f'column{number}' for number in range(20_000)]
    (tmp_path / 'a.csv').write_text(','.join(names) + '\n' + '1,' * 19_999 + '1\n')
    assert column_names(tmp_path / 'a.csv') == names


def test_json_text_that_looks_like_a_date_stays_as_written(tmp_path):
    row = {'day': '2020-01-01', 'id': '2020-01-01 10:00:00', 'n': 1}
    (tmp_path / 'a.jsonl').write_text(json.dumps(row) + '\n')
    assert read_table(tmp_path / 'a.jsonl').to_pylist() == [row]
    assert read_table(tmp_path / 'a.jsonl', ['id']).to_pydict() == {'id': [row['id']]}
