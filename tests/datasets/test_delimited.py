import pytest

from hellm_pyg.datasets.tables import column_names, read_table


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
