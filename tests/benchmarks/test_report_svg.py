import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import numbers
from benchmarks.report.svg import TICK_WIDTH, Scale, apart, beside, escape, fit, tag

places = st.lists(st.floats(0, 300), min_size=1, max_size=30)


@given(places)
def test_labels_keep_their_order_and_distance(found: list[float]) -> None:
    moved = apart(found, 12, 0, 300)
    gap = min(12, 300 / max(1, len(found) - 1))
    ordered = sorted(range(len(found)), key=lambda i: found[i])
    for one, other in pairwise(ordered):
        assert moved[other] - moved[one] >= gap - 1e-6
    assert min(moved) >= -1e-6
    assert max(moved) <= 300 + 1e-6


def test_labels_move_only_if_they_touch() -> None:
    assert apart([50, 10, 100], 12, 0, 300) == [50, 10, 100]
    assert apart([50, 52], 12, 0, 300) == [45, 57]
    assert apart([1, 2], 12, 0, 300) == [0, 12]
    assert apart([], 12, 0, 300) == []


@given(
    st.floats(1e-6, 1e9),
    st.floats(1.01, 1e5),
    st.booleans(),
)
def test_ticks_are_few_round_and_inside(low: float, ratio: float, log: bool) -> None:
    scale = fit([low, low * ratio], 0, 400, log=log)
    assert all(scale.low <= value <= scale.high for value in scale.ticks)
    assert len(scale.ticks) <= 15
    assert scale(scale.low) == pytest.approx(0)
    assert scale(scale.high) == pytest.approx(400)
    assert len(scale.ticks) >= 2
    if not log:
        steps = [b - a for a, b in pairwise(scale.ticks)]
        assert max(steps) == pytest.approx(min(steps), rel=1e-3)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_ticks_of_whole_numbers(low: int, extent: int) -> None:
    scale = fit([low, low + extent], 0, 400, pad=0.03, whole=True)
    assert scale.ticks == [round(value) for value in scale.ticks]
    assert len(scale.ticks) >= min(2, extent + 1)


def test_scales_of_one_value_and_of_none() -> None:
    assert fit([3.0], 0, 10)(3.0) == pytest.approx(5)
    assert fit([0.0], 0, 10)(0.0) == pytest.approx(5)
    assert fit([], 0, 10).ticks
    assert fit([2.0], 0, 10, log=True)(2.0) == pytest.approx(5)


def test_logarithm_and_wanted_ticks() -> None:
    scale = Scale(1, 100, 0, 200, log=True)
    assert scale(10) == pytest.approx(100)
    assert scale.ticks == [1, 10, 100]
    scale = fit([40, 5000], 0, 200, log=True, wanted=numbers.DURATIONS)
    shown = [numbers.duration(value) for value in scale.ticks]
    assert shown == ['30 s', '2 min', '10 min', '1 h']
    assert all(scale(b) - scale(a) >= TICK_WIDTH for a, b in pairwise(scale.ticks))


def test_labels_do_not_lie_on_each_other() -> None:
    points = [(100.0 + 3 * i, 100.0 + 2 * i) for i in range(4)]
    found = beside(points, ['model'] * 4, (0, 0, 400, 300))
    assert len({(round(x), round(y)) for x, y, _ in found}) == 4
    for x, y, anchor in found:
        left = x - {'start': 0, 'middle': 16, 'end': 32}[anchor]
        assert left >= 0
        assert 0 <= y <= 300


def test_elements_are_escaped() -> None:
    assert tag('a', 'x', class_='k', data_x='"<') == (
        '<a class="k" data-x="&quot;&lt;">x</a>'
    )
    assert tag('a', b=None, c=1 / 3) == '<a c="0.33333"></a>'
    assert escape('<&') == '&lt;&amp;'


@pytest.mark.parametrize(
    ('written', 'expected'),
    [
        (numbers.decimal(0.04567), '0.0457'),
        (numbers.decimal(None), '-'),
        (numbers.decimal(math.nan), '-'),
        (numbers.signed(-0.01234), '\N{MINUS SIGN}0.0123'),
        (numbers.signed(0.01), '+0.0100'),
        (numbers.p_value(0.0004), '0.0004'),
        (numbers.p_value(0.25), '0.250'),
        (numbers.p_value(1e-4, True), '≤ 0.0001'),
        (numbers.duration(2.5), '2.5 s'),
        (numbers.duration(600), '10 min'),
        (numbers.duration(5400), '1.5 h'),
        (numbers.size(4_411_392), '4.41M'),
        (numbers.size(999.9), '1k'),
        (numbers.memory(843_771_904), '844 MB'),
        (numbers.tick(0.05), '0.05'),
        (numbers.tick(0), '0'),
    ],
)
def test_numbers(written: str, expected: str) -> None:
    assert written == expected
