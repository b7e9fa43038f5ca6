import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hellm_pyg.datasets.columns import (
    MISSING,
    encode_ids,
    read_numbers,
    read_values,
)
from hellm_pyg.datasets.ids import IdMap, spelled
from hellm_pyg.datasets.rows import RowCheck

TEXT = st.text(min_size=1).filter(
    lambda s: s.strip().lower() not in MISSING and not {'\n', '\r'} & set(s)
)


def column(values, kind=None):
    whole, middle = pa.array(values, kind), len(values) // 2
    return pa.chunked_array([whole[:middle], whole[middle:]])


def refuse(values):
    return RowCheck('log.csv', 'refuse', len(values))


def encode(values, kind=None):
    return encode_ids(column(values, kind), 'user', 'user', refuse(values))


def numbers(values):
    return read_numbers(column(values), 'r', 'rating', refuse(values)).tolist()


@given(
    st.one_of(
        st.lists(TEXT, min_size=1),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    )
)
def test_encoding_round_trips_in_ascending_order(values):
    kind = pa.string() if isinstance(values[0], str) else pa.int64()
    ids, code = encode(values, kind)
    assert code.dtype == np.int64
    read = [ids[c] for c in code]
    assert list(map(str, read)) == [spelled(str(value)) for value in values]
    assert ids == sorted(set(ids))
    assert IdMap(ids, []).user_index(values).tolist() == code.tolist()


def test_text_is_integers_only_if_all_of_it_is():
    assert encode(['10', '9', '10'])[0] == [9, 10]
    assert encode(['10', '9', 'x'])[0] == ['10', '9', 'x']
    assert encode(['007', '10'])[0] == ['007', '10']
    assert encode(['9' * 30, '1'])[0] == ['1', '9' * 30]


@pytest.mark.parametrize(
    'kind',
    [pa.uint8(), pa.int32(), pa.float64(), pa.dictionary(pa.int32(), pa.int64())],
)
def test_whole_numbers_of_any_type(kind):
    ids, code = encode([5, 3, 5], kind)
    assert ids == [3, 5]
    assert all(type(v) is int for v in ids)
    assert code.tolist() == [1, 0, 1]


def test_text_of_any_type():
    texts = pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())
    for kind in texts:
        assert encode(['b', 'a', 'b'], kind)[0] == ['a', 'b']
    assert encode([0, 86400], pa.timestamp('s'))[0][1].startswith('1970-01-02')


@pytest.mark.parametrize(
    ('values', 'kind', 'row'),
    [
        (['a', None, 'b'], pa.string(), 2),
        (['a', 'b', ''], pa.string(), 3),
        ([1, 2, None], pa.int64(), 3),
        ([1.0, float('nan')], pa.float64(), 2),
    ],
)
def test_missing_id_names_the_row(values, kind, row):
    match = rf"'log.csv': column 'user' is missing a value in row {row}$"
    with pytest.raises(ValueError, match=match):
        encode(values, kind)


@pytest.mark.parametrize('text', ['NaN', 'null', 'None'])
def test_words_for_nothing_are_shown(text):
    match = rf"missing a value in row 2 \(got '{text}', which is read as missing\)$"
    with pytest.raises(ValueError, match=match):
        encode(['a', text], pa.string())


def test_ids_that_are_none():
    with pytest.raises(ValueError, match=r'as ids in row 2 .got 1.5'):
        encode([1.0, 1.5])
    with pytest.raises(ValueError, match=r'as ids in row 1 .got inf'):
        encode([float('inf'), 1.5])
    with pytest.raises(ValueError, match=r'as ids .got bool'):
        encode([True, False])
    with pytest.raises(
        ValueError, match=r"rounded in row 2 .got '1.23457E\+12'.; take"
    ):
        encode(['a', '1.23457E+12'])


@pytest.mark.parametrize(
    ('kind', 'exact'), [('float16', 2**11), ('float32', 2**24), ('float64', 2**53)]
)
def test_ids_in_floats_are_whole_or_refused(kind, exact):
    dtype = np.dtype(kind)
    assert encode(np.array([exact - 1, 3], dtype))[0] == [3, exact - 1]
    with pytest.raises(ValueError, match=rf'in row 2 .*exact below {exact}'):
        encode(np.array([3, exact + 1], dtype))


def test_spellings_of_an_id_are_one(caplog):
    values = ['é', ' e\u0301', 'b\u00a0', 'é\t', 'b', ' ']
    rows = RowCheck('log.csv', 'drop', len(values))
    ids, code = encode_ids(column(values), 'user', 'user', rows)
    assert (ids, code.tolist()) == (['b', 'é'], [1, 1, 0, 1, 0, -1])
    assert "3 ids of column 'user' are read without the blanks" in caplog.text
    assert encode([' 10', '9 '])[0] == [9, 10]


def test_numbers():
    assert numbers(['4', '3.5', '-1e1']) == [4, 3.5, -10]
    assert numbers([4, 3]) == [4, 3]
    with pytest.raises(ValueError, match=r"column 'r' needs a number in row 2 .*'x'"):
        numbers(['4', 'x'])
    with pytest.raises(ValueError, match=r"'r' is missing a value in row 2"):
        numbers([4, None])
    with pytest.raises(ValueError, match=r"column 'r' needs numbers .got bool"):
        numbers([True])


def test_dropped_rows_are_counted_once():
    values = ['7', None, '', 'x', '3', 'NaN']
    rows = RowCheck('log.csv', 'drop', len(values))
    ids, code = encode_ids(column(values), 'user', 'user', rows)
    assert ids == ['3', '7', 'x']
    assert code[rows.kept].tolist() == [1, 2, 0]
    assert rows.kept.tolist() == [True, False, False, True, True, False]
    assert rows.dropped == {'missing user': 3}
    ratings = read_numbers(column(['1', '2', 'x', 'x', '3', '4']), 'r', 'rating', rows)
    assert rows.dropped == {'missing user': 3, 'missing rating': 1}
    assert ratings[rows.kept].tolist() == [1, 3]


@pytest.mark.parametrize('kind', [pa.float64(), pa.int64()])
def test_missing_numbers_leave_the_others_their_order(kind):
    rows = RowCheck('log.csv', 'drop', 4)
    ids, code = encode_ids(column([9, None, 3, 9], kind), 'user', 'user', rows)
    assert (ids, code.tolist()) == ([3, 9], [1, -1, 0, 1])


def test_text_that_is_integers_but_for_missing_ones_is_integers():
    rows = RowCheck('log.csv', 'drop', 4)
    ids, code = encode_ids(column(['9', '', '10', '9']), 'user', 'user', rows)
    assert (ids, code.tolist()) == ([9, 10], [0, -1, 1, 0])


@given(st.lists(st.sampled_from([-5, 0, 1, 2, 7, 2**62, -(2**63), 2**63 - 1])))
def test_integers_near_and_far_apart(values):
    ids, code = encode(values, pa.int64())
    assert ids == sorted(set(values))
    assert [ids[c] for c in code] == values


def test_ids_that_a_broken_file_gives():
    with pytest.raises(ValueError, match=r'line break within an id.* in row 2'):
        encode(['a', 'b\nc'])
    with pytest.raises(ValueError, match=r'more than 1024 characters in row 1'):
        encode(['é' * 1025])
    assert encode(['é' * 1024])[0] == ['é' * 1024]


def test_free_columns():
    def read(values, text_format=False, kind=None):
        return read_values(column(values, kind), 'c', 'items.csv', text_format)

    assert read(['1995', '', '2001'], True) == [1995, None, 2001]
    assert read(['1.5', '2', '', '1e-05'], True) == [1.5, 2.0, None, 1e-05]
    for text in ('0114709', '5.10', '1e5', '1e500', '12345678901234567890'):
        assert read([text, '2.5'], True) == [text, '2.5']
    assert read(['1995', '2']) == ['1995', '2']
    assert read(['a', None]) == ['a', '']
    assert read([1, None]) == [1, None]
    assert read([['x'], []]) == [['x'], []]
    assert read([[[1.5], None], None]) == [[[1.5], None], None]
    assert read([0], kind=pa.date32()) == ['1970-01-01']
    assert read([b'\xc3\xbc', None], kind=pa.binary()) == ['ü', '']
    assert read([b'ab'], kind=pa.binary(2)) == ['ab']
    with pytest.raises(ValueError, match=r"'items.csv': column 'c' .*got binary, not"):
        read([b'\xff'], kind=pa.binary())


def test_structured_columns_become_json():
    def read(values, kind):
        return read_values(column(values, kind), 'details', 'items.jsonl', False)

    day, days = datetime.date(2024, 5, 1), pa.list_(pa.date32())
    assert read([{}, None], pa.struct([])) == ['{}', '']
    assert read([{'ü': day}], pa.struct([('ü', pa.date32())])) == [
        '{"ü": "2024-05-01"}'
    ]
    for key in (pa.string(), pa.date32()):
        kind = pa.map_(key, pa.int64())
        given = {pa.string(): 'size', pa.date32(): day}[key]
        assert read([[(given, 4)], None], kind) == [f'{{"{given}": 4}}', '']
    assert read([[day], []], days) == ['["2024-05-01"]', '[]']
