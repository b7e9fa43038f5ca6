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
    assert list(map(str, (ids[c] for c in code))) == list(map(str, values))
    assert ids == sorted(set(ids))


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
        (['NaN', 'b'], pa.string(), 1),
        ([1, 2, None], pa.int64(), 3),
        ([1.0, float('nan')], pa.float64(), 2),
    ],
)
def test_missing_id_names_the_row(values, kind, row):
    match = rf"'log.csv': column 'user' is missing a value in row {row}$"
    with pytest.raises(ValueError, match=match):
        encode(values, kind)


def test_ids_that_are_none():
    with pytest.raises(ValueError, match=r'as ids in row 2 .got 1.5'):
        encode([1.0, 1.5])
    with pytest.raises(ValueError, match=r'as ids in row 1 .got inf'):
        encode([float('inf'), 1.5])
    with pytest.raises(ValueError, match=r'as ids .got bool'):
        encode([True, False])


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
    assert read_values(column(['1995', '', '2001']), True) == [1995, None, 2001]
    assert read_values(column(['1.5', '2']), True) == [1.5, 2.0]
    assert read_values(column(['0114709', '2']), True) == ['0114709', '2']
    assert read_values(column(['1995', '2']), False) == ['1995', '2']
    assert read_values(column(['a', None]), False) == ['a', '']
    assert read_values(column([1, None]), False) == [1, None]
    assert read_values(column([['x'], []]), False) == [['x'], []]
    assert read_values(column([0], pa.date32()), False) == ['1970-01-01']
