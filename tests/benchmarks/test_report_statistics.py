from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.report import statistics
from benchmarks.report.statistics import (
    bootstrap,
    holm,
    paired_permutation,
    percentile_interval,
)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def test_bootstrap_has_the_mean_and_error_of_a_mean(
    generator: np.random.Generator,
) -> None:
    values = generator.gamma(2.0, size=(400, 3))
    draws = bootstrap(values, resamples=4000, seed=1)
    assert draws.shape == (4000, 3)
    error = values.std(axis=0) / np.sqrt(len(values))
    assert np.abs(draws.mean(axis=0) - values.mean(axis=0)).max() < 0.1 * error.max()
    np.testing.assert_allclose(draws.std(axis=0), error, rtol=0.05)


def test_bootstrap_draws_every_multiset_of_two_users() -> None:
    draws = bootstrap(np.array([[0.0], [1.0]]), resamples=4000)
    shares = [(draws == value).mean() for value in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.03)
    assert sum(shares) == 1


def test_columns_of_a_bootstrap_are_paired(generator: np.random.Generator) -> None:
    one = generator.normal(size=50)
    draws = bootstrap(np.stack([one, one + 0.25], axis=1), resamples=50)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 0.25)


def test_interval_agrees_with_scipy(generator: np.random.Generator) -> None:
    values = generator.exponential(size=300)
    low, high = percentile_interval(bootstrap(values[:, None], 9999))
    other = stats.bootstrap(
        (values,), np.mean, method='percentile', rng=np.random.default_rng(3)
    ).confidence_interval
    width = other.high - other.low
    assert low[0] == pytest.approx(other.low, abs=0.05 * width)
    assert high[0] == pytest.approx(other.high, abs=0.05 * width)


@pytest.mark.parametrize('level', [0.8, 0.95])
def test_interval_covers_the_true_mean_as_often_as_it_says(level: float) -> None:
    generator, repeats, covered = np.random.default_rng(11), 600, 0
    for repeat in range(repeats):
        hits = (generator.random((250, 1)) < 0.3).astype(float)
        low, high = percentile_interval(bootstrap(hits, 400, seed=repeat), level)
        covered += bool(low[0] <= 0.3 <= high[0])
    # Four standard errors, and a percent for the discreteness of a proportion.
    error = 4 * np.sqrt(level * (1 - level) / repeats) + 0.01
    assert covered / repeats == pytest.approx(level, abs=error)


def test_blocks_of_resamples_do_not_matter(
    generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = generator.normal(size=(64, 2))
    whole = bootstrap(values, 33), paired_permutation(values, 99)
    monkeypatch.setattr(statistics, 'CHUNK', 64 * 5)
    parts = bootstrap(values, 33), paired_permutation(values, 99)
    np.testing.assert_allclose(parts[0], whole[0])
    np.testing.assert_array_equal(parts[1], whole[1])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_permutation_enumerates_all_signs(found: list[int]) -> None:
    values = np.array(found, float) / 7
    sums = [abs(np.dot(signs, found)) for signs in product((-1, 1), repeat=len(found))]
    expected = np.mean([total >= abs(sum(found)) for total in sums])
    assert paired_permutation(values[:, None])[0] == pytest.approx(expected)


def test_permutation_agrees_with_scipy(generator: np.random.Generator) -> None:
    values = generator.normal(0.4, size=12)
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type='samples', n_resamples=np.inf
    ).pvalue
    assert paired_permutation(values[:, None])[0] == pytest.approx(expected)


def test_permutation_of_hits_is_the_exact_mcnemar_test() -> None:
    better, worse, equal = 8, 3, 500
    values = np.array([1.0] * better + [-1.0] * worse + [0.0] * equal)[:, None]
    expected = stats.binomtest(better, better + worse).pvalue
    assert paired_permutation(values)[0] == pytest.approx(expected)


def test_random_signs_agree_with_mcnemar_and_normal() -> None:
    generator = np.random.default_rng(2)
    hits = np.array([1.0] * 130 + [-1.0] * 100)
    normal = generator.normal(0.1, size=230)
    p = paired_permutation(np.stack([hits, normal], axis=1), resamples=20_000)
    z = normal.sum() / np.sqrt((normal**2).sum())
    assert p[0] == pytest.approx(stats.binomtest(130, 230).pvalue, abs=0.01)
    assert p[1] == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.015)


def test_p_values_are_uniform_where_nothing_differs() -> None:
    values = np.random.default_rng(5).normal(size=(80, 500))
    p = paired_permutation(values, resamples=500)
    assert stats.kstest(p, 'uniform').pvalue > 0.01
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.04)


def test_p_values_are_never_zero_and_one_without_difference() -> None:
    clear = paired_permutation(np.ones((2000, 1)), resamples=99)
    np.testing.assert_allclose(clear, 1 / 100)
    np.testing.assert_array_equal(paired_permutation(np.zeros((50, 2))), 1)


def test_sign_of_the_difference_does_not_matter(generator: np.random.Generator) -> None:
    values = generator.normal(0.1, size=(300, 1))
    both = paired_permutation(np.concatenate([values, -values], axis=1), 999)
    assert both[0] == both[1]


def test_holm_by_hand() -> None:
    # 4 x .01 = .04, 3 x .013 = .039 (raised to .04), 2 x .03 = .06, .5
    p = np.array([0.03, 0.01, 0.5, 0.013])
    np.testing.assert_allclose(holm(p), [0.06, 0.04, 0.5, 0.04])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])
    np.testing.assert_allclose(holm(np.array([0.04])), [0.04])
    assert holm(np.array([])).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_rejects_what_the_step_down_rejects(found: list[float]) -> None:
    p, level, rejected = np.array(found), 0.05, set()
    for step, i in enumerate(np.argsort(p, kind='stable')):
        if p[i] * (len(p) - step) > level:
            break
        rejected.add(int(i))
    adjusted = holm(p)
    assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()
