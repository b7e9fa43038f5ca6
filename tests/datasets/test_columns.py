from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hellm_pyg.datasets.columns import (
    encode_ids,
    read_numbers,
    read_times,
    read_values,
    whole_times,
)

PATH = Path('log.csv')


def column(values, kind=None):
    whole, middle = pa.array(values, kind), len(values) // 2
    return pa.chunked_array([whole[:middle], whole[middle:]])


def encode(values, kind=None):
    return encode_ids(column(values, kind), PATH, 'user')


def seconds(values, kind=None):
    return whole_times(read_times(column(values, kind), PATH, 'time')).tolist()


@given(
    st.one_of(
        st.lists(st.text(min_size=1).filter(lambda s: s.lower() != 'nan'), min_size=1),
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


def test_times_of_all_kinds():
    assert seconds([3, 1], pa.int32()) == [3, 1]
    assert seconds([2.75, -0.25]) == [2, -1]
    assert seconds(['1700000000123', '7']) == [1700000000123, 7]
    assert seconds(['1.5e3', '7']) == [1500, 7]
    assert seconds([86400_000, -1], pa.timestamp('ms')) == [86400, -1]
    assert seconds([1], pa.date32()) == [86400]
    assert seconds([3_600_000_000_999], pa.timestamp('ns', tz='Asia/Tokyo')) == [3600]
    assert seconds(['1970-01-02', '1970-01-01']) == [86400, 0]
    assert seconds(['1970-01-01T00:01:00', '1970-01-01 00:00:01.5']) == [60, 1]
    assert seconds(['1970-01-01T01:00:00+01:00', '1970-01-01T00:00:09Z']) == [0, 9]
    assert seconds(['1970-01-01T01:00:00+01:00', '1970-01-02']) == [0, 86400]


def test_sub_second_times_can_be_sorted():
    for values in ([1.75, 1.25], ['1970-01-01 00:00:01.75', '1970-01-01 00:00:01.25']):
        assert np.argsort(read_times(column(values), PATH, 'time')).tolist() == [1, 0]


@pytest.mark.parametrize(
    ('values', 'match'),
    [
        (['2014-01-01', 'soon', '2014-01-02'], r"ISO 8601 time in row 2 .got 'soon'"),
        (['1', '2', 'x'], r"a number, as other rows have, in row 3 .got 'x'"),
        (['1', '2014-01-01'], r"in row 2 .got '2014-01-01'"),
        (['1', ''], r"in row 2 .got ''"),
        (['2014-13-01'], r"in row 1 .got '2014-13-01'"),
        ([1, None], 'missing a value in row 2'),
        ([1.0, float('inf')], 'finite number in row 2 .got inf'),
        ([True], 'as times .got bool'),
        ([1.0, 1e19], 'fit into 64 bits in row 2'),
        (['1', '99999999999999999999'], 'fit into 64 bits in row 2'),
        (np.array([2**64 - 1], dtype='uint64'), 'fit into 64 bits in row 1'),
    ],
)
def test_bad_time_names_file_row_and_value(values, match):
    with pytest.raises(ValueError, match=f"'log.csv': column 'time'.*{match}"):
        seconds(values)


def test_numbers():
    assert read_numbers(column(['4', '3.5', '-1e1']), PATH, 'r').tolist() == [
        4,
        3.5,
        -10,
    ]
    assert read_numbers(column([4, 3]), PATH, 'r').tolist() == [4, 3]
    with pytest.raises(
        ValueError, match=r"column 'r' needs a number in row 2 .got 'x'"
    ):
        read_numbers(column(['4', 'x']), PATH, 'r')
    with pytest.raises(ValueError, match=r"column 'r' needs numbers .got bool"):
        read_numbers(column([True]), PATH, 'r')


def test_free_columns():
    assert read_values(column(['1995', '', '2001']), True) == [1995, None, 2001]
    assert read_values(column(['1.5', '2']), True) == [1.5, 2.0]
    assert read_values(column(['0114709', '2']), True) == ['0114709', '2']
    assert read_values(column(['1995', '2']), False) == ['1995', '2']
    assert read_values(column(['a', None]), False) == ['a', '']
    assert read_values(column([1, None]), False) == [1, None]
    assert read_values(column([['x'], []]), False) == [['x'], []]
    assert read_values(column([0], pa.date32()), False) == ['1970-01-01']
