from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from hellm_pyg.datasets.rows import RowCheck
from hellm_pyg.datasets.times import read_moment, read_times, whole_times


def column(values, kind=None):
    whole, middle = pa.array(values, kind), len(values) // 2
    return pa.chunked_array([whole[:middle], whole[middle:]])


def read(values, kind=None, unit=None, policy='refuse'):
    rows = RowCheck('log.csv', policy, len(values))
    return read_times(column(values, kind), 'time', rows, unit), rows


def seconds(values, kind=None, unit=None):
    return whole_times(read(values, kind, unit)[0].value).tolist()


NOW = int(datetime.now(UTC).timestamp())
MAY = 1_714_521_600  # 2024-05-01


def test_times_of_all_kinds():
    assert seconds([3, 1], pa.int32()) == [3, 1]
    assert seconds([2.75, -0.25]) == [2, -1]
    assert seconds(['1.5e3', '7']) == [1500, 7]
    assert seconds([86400_000, 1999], pa.timestamp('ms')) == [86400, 1]
    assert seconds([1], pa.date32()) == [86400]
    assert seconds([86400_000], pa.date64()) == [86400]
    assert seconds([3_600_000_000_999], pa.timestamp('ns', tz='Asia/Tokyo')) == [3600]
    assert seconds(['1970-01-02', '1970-01-03']) == [86400, 172800]
    assert seconds(['1970-01-01T00:01:00', '1970-01-01 00:00:01.5']) == [60, 1]
    assert seconds(['1970-01-01T02:00:00+01:00', '1970-01-01T00:00:09Z']) == [3600, 9]
    assert seconds(['1970-01-01T02:00:00+01:00', '1970-01-02']) == [3600, 86400]


@pytest.mark.parametrize(
    ('unit', 'size'), [('s', 1), ('ms', 10**3), ('us', 10**6), ('ns', 10**9)]
)
@pytest.mark.parametrize('kind', [pa.int64(), pa.float64(), pa.string()])
def test_units_since_1970_are_recognised(unit, size, kind):
    given = [(MAY + 1) * size, MAY * size, (MAY + 2) * size]
    change = {pa.string(): str, pa.float64(): float}.get(kind, int)
    values = list(map(change, given))
    got, _ = read(values, kind)
    assert got.read_as == unit
    assert whole_times(got.value).tolist() == [MAY + 1, MAY, MAY + 2]
    assert seconds(values, kind, 'number') == given
    assert seconds([9 * size, 7 * size], unit=unit) == [9, 7]


def test_milliseconds_are_sorted_in_full():
    got, _ = read([1_714_521_600_900, 1_714_521_600_100])
    assert np.argsort(got.value).tolist() == [1, 0]
    got, _ = read([1_714_521_600_900.75, 1_714_521_600_900.25])
    assert np.argsort(got.value).tolist() == [1, 0]


def test_days_as_eight_digits():
    got, _ = read(['20240501', '20240229', '19991231'])
    assert got.read_as == 'dates'
    assert whole_times(got.value).tolist() == [MAY, 1_709_164_800, 946_598_400]
    for other in (20230229, 20241301, 20240500, 19000101, 20240431):
        assert read([20240501, other])[0].read_as == 'number'
    assert read([20240501], unit='number')[0].value.tolist() == [20240501]


def test_plain_numbers_are_left_alone():
    for values in ([-30, -2, 0], [10**11, 10**11], [4, 3.5], [10**17]):
        got, _ = read(values)
        assert got.read_as == 'number'
        assert got.value.tolist() == values


def test_sub_second_times_can_be_sorted():
    for values in ([1.75, 1.25], ['1970-01-01 00:00:01.75', '1970-01-01 00:00:01.25']):
        assert np.argsort(read(values)[0].value).tolist() == [1, 0]


def day(days):
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


BAD = [
    (['2014-01-01', 'soon', '2014-01-02'], r"ISO 8601 time in row 2 .got 'soon'"),
    (['2014-01-01', '', '2014-01-02'], 'missing a value in row 2'),
    (['1', ' NULL'], 'missing a value in row 2'),
    (['1.71452E+12', f'{MAY}000'], "spreadsheet has rounded in row 1 .got '1.71452E"),
    (np.array([5, MAY], 'float32'), 'lost digits as float32, write int64, in row 2'),
    (np.array([5, 20240131], 'float32'), 'lost digits .* in row 2 .got 20240132'),
    (['1', '2', 'x'], r"a number, as other rows have, in row 3 .got 'x'"),
    (['1', '2014-01-01'], r"in row 2 .got '2014-01-01'"),
    (['2014-01-01', '1', '2014-01-01'], r"8601 time, as other rows.* row 2 .got '1'"),
    (['1', ''], 'missing a value in row 2'),
    ([1, None], 'missing a value in row 2'),
    (['2014-01-01', None], 'missing a value in row 2'),
    ([1.0, float('inf')], 'finite number in row 2 .got inf'),
    ([1.0, 1e19], 'fit into 64 bits in row 2'),
    (['1', '99999999999999999999'], 'fit into 64 bits in row 2'),
    ([MAY, -1, MAY], r'times after 1970-01-01 in row 2 .got -1'),
    ([MAY, 0, MAY], r'times after 1970-01-01 in row 2 .got 0'),
    (['2014-01-01', '1969-12-31'], r'after 1970-01-01 in row 2 .got 1969-12-31T00:00'),
    ([MAY, NOW + 2 * 86400], r'a time in the future in row 2'),
    ([day(-2), day(2)], 'a time in the future in row 2 .got 20'),
]


@pytest.mark.parametrize(('values', 'match'), BAD)
def test_bad_time_names_file_row_and_value(values, match):
    with pytest.raises(ValueError, match=f"'log.csv': column 'time'.*{match}"):
        seconds(values)


@pytest.mark.parametrize('values', [values for values, _ in BAD])
def test_bad_times_are_dropped_and_counted(values):
    got, rows = read(values, policy='drop')
    (count,) = rows.dropped.values()
    assert count == (~rows.kept).sum() == 1
    good = [value for value, kept in zip(values, rows.kept, strict=True) if kept]
    assert whole_times(got.value)[rows.kept].tolist() == seconds(good)


def test_reasons():
    values = [MAY, MAY, None, -5, NOW + 10**6]
    assert read(values, policy='drop')[1].dropped == {
        'unreadable time': 1,
        'time not after 1970': 1,
        'time in the future': 1,
    }


@pytest.mark.parametrize('policy', ['refuse', 'drop'])
@pytest.mark.parametrize('unit', [None, 's'])
def test_mixed_units_are_refused(unit, policy):
    match = (
        r'most rows are seconds since 1970, row 2 is milliseconds .got 1714521600000'
    )
    with pytest.raises(ValueError, match=match):
        read([MAY, MAY * 1000, MAY], unit=unit, policy=policy)


def test_a_unit_that_no_time_is_in_is_refused():
    match = r"^'time_unit' .*got 's', .* row 1 is milliseconds: .*time_unit='ms', or"
    with pytest.raises(ValueError, match=match):
        read([MAY * 1000, MAY * 1000 + 5], unit='s')


@pytest.mark.parametrize('good', [str(MAY), '2024-05-01', '20240501'])
def test_blanks_have_no_part_in_what_the_others_are_read_as(good):
    got, rows = read(['', 'NaN', good, ' '], policy='drop')
    assert whole_times(got.value)[rows.kept].tolist() == [MAY]
    assert rows.dropped == {'unreadable time': 3}


def test_bad_columns_and_arguments():
    with pytest.raises(ValueError, match=r"column 'time' needs .* as times .got bool"):
        read([True])
    with pytest.raises(ValueError, match='fit into 64 bits in row 1'):
        read(np.array([2**64 - 1], dtype='uint64'))
    with pytest.raises(ValueError, match=r"'time_unit' needs to be .* .got 'h'"):
        read([1], unit='h')
    with pytest.raises(ValueError, match=r"'bad_rows' needs to be .* .got 'keep'"):
        read([1], policy='keep')


@pytest.mark.parametrize(
    ('value', 'unit', 'expected'),
    [
        (1_714_521_600, None, 1_714_521_600),
        (1_714_521_600_000, None, 1_714_521_600),
        ('1714521600000', None, 1_714_521_600),
        (1_714_521_600_000_000_000, None, 1_714_521_600),
        (5_000, 'ms', 5),
        (5_000, None, 5_000),
        ('20240501', None, '20240501'),
        (20240501, None, '20240501'),
        ('2024-05-01', 'ms', '2024-05-01'),
        (date(2024, 5, 1), None, '2024-05-01'),
        (datetime(2024, 5, 1, 12, tzinfo=UTC), 's', '2024-05-01T12:00:00+00:00'),
        (None, None, None),
    ],
)
def test_read_moment(value, unit, expected):
    assert read_moment(value, unit) == expected
