from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.report import cells as cells_module
from benchmarks.report import tables
from benchmarks.report import users as users_module
from benchmarks.report.analysis import TESTED, Analysis, Settings, analyse
from benchmarks.report.cells import METRICS, load, per_user
from benchmarks.report.users import Users
from tests.benchmarks.fabricate import HEADLINE, TRAIN, ranks, refit, result, write

QUICK = Settings(resamples=400, signs=2000)
FOUND = {
    ('best', 1): ranks(500, 9, 1),
    ('best', 2): ranks(500, 9, 2),
    ('middle', 1): ranks(500, 4, 3),
    ('lightgcn', 1): ranks(500, 2, 4),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv('HELLM_DATA', raising=False)
    for (name, seed), rank in FOUND.items():
        write(tmp_path, result(name, rank, seed=seed))
    return tmp_path


@pytest.fixture
def analysis(folder: Path) -> Analysis:
    return analyse(load(folder)[0], ['lightgcn', 'absent'], QUICK)


def test_means_deviations_and_intervals(analysis: Analysis) -> None:
    assert list(analysis.tables) == [HEADLINE, TRAIN]
    assert analysis.num_users == 500
    row = next(r for r in analysis.tables[HEADLINE] if r.model.key == 'best')
    one, two = (per_user(FOUND['best', seed]) for seed in (1, 2))
    np.testing.assert_allclose(row.mean, (one + two).mean(axis=0) / 2)
    gap = np.abs(one.mean(axis=0) - two.mean(axis=0))
    np.testing.assert_allclose(row.deviation, gap / np.sqrt(2))
    error = ((one + two) / 2).std(axis=0) / np.sqrt(500)
    np.testing.assert_allclose(row.high - row.low, 2 * 1.96 * error, rtol=0.2)
    assert (row.low < row.mean).all()
    assert (row.mean < row.high).all()
    single = next(r for r in analysis.tables[HEADLINE] if r.model.key == 'middle')
    assert (single.seeds, single.deviation) == (1, None)


def test_intervals_are_of_their_own_protocol(analysis: Analysis) -> None:
    for row in analysis.tables[TRAIN]:
        assert (row.low < row.mean).all()
        assert (row.mean < row.high).all()


def test_references_are_the_best_on_validation_and_the_baseline(
    analysis: Analysis,
) -> None:
    names = [(one.reference.key, one.why) for one in analysis.tests]
    assert names == [
        ('best', 'the best on validation N@10'),
        ('lightgcn', 'the chosen baseline'),
    ]
    for one in analysis.tests:
        others = {'best', 'middle', 'lightgcn'} - {one.reference.key}
        assert {row.model.key for row in one.rows} == others


def test_the_test_items_do_not_choose_the_reference(folder: Path) -> None:
    content = result('lucky', ranks(500, 30, 8))
    content['validation']['metrics']['N@10'] = 0.001
    write(folder, content)
    assert analyse(load(folder)[0], [], QUICK).tests[0].reference.key == 'best'


def test_differences_and_p_values(analysis: Analysis) -> None:
    one = analysis.tests[1]
    row = next(row for row in one.rows if row.model.key == 'middle')
    pair = per_user(FOUND['middle', 1]) - per_user(FOUND['lightgcn', 1])
    pair = pair[:, [METRICS.index(metric) for metric in TESTED]]
    np.testing.assert_allclose(row.difference, pair.mean(axis=0))
    error = pair.std(axis=0) / np.sqrt(500)
    np.testing.assert_allclose(row.high - row.low, 2 * 1.96 * error, rtol=0.2)
    hits = pair[:, TESTED.index('R@10')]
    better, worse = (hits > 0).sum(), (hits < 0).sum()
    exact = stats.binomtest(better, better + worse).pvalue
    assert row.p[TESTED.index('R@10')] == pytest.approx(exact, abs=0.03)
    raw = np.concatenate([row.p for row in one.rows])
    adjusted = np.concatenate([row.adjusted for row in one.rows])
    assert len(raw) == 4
    assert adjusted[raw.argmin()] == pytest.approx(min(1, 4 * raw.min()))
    assert adjusted[raw.argmax()] >= raw.max()


def test_seeds_that_both_have_are_compared(folder: Path) -> None:
    write(folder, result('lightgcn', ranks(500, 2, 7), seed=3))
    write(folder, result('other', ranks(500, 5, 8), seed=4))
    rows = {
        row.model.key: row for row in analyse(load(folder)[0], [], QUICK).tests[0].rows
    }
    columns = [METRICS.index(metric) for metric in TESTED]
    one, two = (per_user(FOUND['best', seed]) for seed in (1, 2))
    pair = per_user(FOUND['lightgcn', 1]) - one
    assert rows['lightgcn'].seeds == 1
    np.testing.assert_allclose(
        rows['lightgcn'].difference, pair[:, columns].mean(axis=0)
    )
    pair = per_user(ranks(500, 5, 8)) - (one + two) / 2
    assert rows['other'].seeds == 0
    np.testing.assert_allclose(rows['other'].difference, pair[:, columns].mean(axis=0))


def test_bold_are_differences_of_several_seeds(folder: Path) -> None:
    for seeds in (1, 2):
        write(folder, result('worst', ranks(500, 0, 5 + seeds), seed=seeds))
        analysis = analyse(load(folder)[0], [], QUICK)
        row = next(r for r in analysis.tests[0].rows if r.model.key == 'worst')
        assert (row.adjusted < 0.05).all()
        table = tables.tests(analysis, analysis.tests[0], QUICK)
        cells = next(
            cells for cells in table.rows if cells[0].text == row.model.name.label
        )
        assert cells[1].text == str(seeds)
        assert [cell.best for cell in cells].count(True) == (2 if seeds == 2 else 0)


def test_same_seed_same_numbers(folder: Path, analysis: Analysis) -> None:
    again = analyse(load(folder)[0], ['lightgcn'], QUICK)
    for one, other in zip(
        analysis.tables[HEADLINE], again.tables[HEADLINE], strict=True
    ):
        np.testing.assert_array_equal(one.low, other.low)
    np.testing.assert_array_equal(analysis.tests[0].rows[0].p, again.tests[0].rows[0].p)


def test_models_without_ranks_have_numbers_but_no_intervals(folder: Path) -> None:
    content = result('older', ranks(500, 3, 5))
    del content['ranks']
    write(folder, content)
    analysis = analyse(load(folder)[0], [], QUICK)
    row = next(r for r in analysis.tables[HEADLINE] if r.model.key == 'older')
    assert row.low is None
    assert row.mean.shape == (4,)
    assert 'older' not in {r.model.key for r in analysis.tests[0].rows}


def test_what_saw_the_validation_items_is_not_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = analyse(load(folder)[0], ['lightgcn'], QUICK).tests
    for seed in (1, 2):
        write(folder, refit('best_refit', ranks(500, 90, 5), seed=seed))
    users = Users(np.full(500, 3), np.full(500, 7))
    monkeypatch.setenv('HELLM_DATA', str(folder))
    monkeypatch.setattr(users_module, '_count', lambda result: users)
    analysis = analyse(load(folder)[0], ['lightgcn', 'best_refit'], QUICK)
    assert 'best_refit' in {r.model.key for r in analysis.tables[HEADLINE]}
    for one, other in zip(analysis.tests, plain, strict=True):
        assert one.reference.key == other.reference.key
        assert [r.model.key for r in one.rows] == [r.model.key for r in other.rows]
        for a, b in zip(one.rows, other.rows, strict=True):  # the same Holm family
            np.testing.assert_array_equal(a.adjusted, b.adjusted)
    assert [[m.key for m in part.models] for part in analysis.slices] == [
        *[['lightgcn', 'middle', 'best']] * 2,
        *[['best_refit']] * 2,
    ]


def test_one_model_has_no_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('HELLM_DATA', raising=False)
    write(tmp_path, result('alone', ranks(50, 1, 1)))
    write(tmp_path, refit('alone_refit', ranks(50, 1, 2)))
    assert analyse(load(tmp_path)[0], ['alone'], QUICK).tests == []


def test_slices_are_means_over_their_users(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = np.repeat([3, 5, 30], [200, 200, 100])
    popularity = np.tile([0, 3, 7, 300], 125)
    monkeypatch.setenv('HELLM_DATA', str(folder))
    monkeypatch.setattr(
        users_module, '_count', lambda result: Users(history, popularity)
    )
    by_length, by_count = analyse(load(folder)[0], [], QUICK).slices
    assert (by_length.labels, by_length.sizes) == (
        ['3', '5', '30 or more'],
        [200, 200, 100],
    )
    assert by_count.labels == ['0', '3 to 4', '7 to 9', '300 or more']
    at = [model.key for model in by_length.models].index('middle')
    value = per_user(FOUND['middle', 1])[:, METRICS.index('N@10')]
    expected = [value[:200].mean(), value[200:400].mean(), value[400:].mean()]
    np.testing.assert_allclose(by_length.value[at], expected)
    np.testing.assert_allclose(by_count.value[at][0], value[popularity == 0].mean())
    assert (by_length.low <= by_length.value).all()
    assert (by_length.value <= by_length.high).all()


def test_the_best_point_of_a_grid_is_tested(folder: Path) -> None:
    for k, quality in ((1, 1), (5, 6), (10, 2)):
        point = {'cell': 'knn', 'grid': {'data.knn': k}}
        write(folder, result(f'knn-{k}', ranks(500, quality, k), **point))
    analysis = analyse(load(folder)[0], ['knn-1', 'knn-5'], QUICK)
    points = {'knn-1', 'knn-5', 'knn-10'}
    assert points < {r.model.key for r in analysis.tables[HEADLINE]}
    assert [one.reference.key for one in analysis.tests] == ['best', 'knn-5']
    compared = {row.model.key for row in analysis.tests[0].rows}
    assert compared == {'middle', 'lightgcn', 'knn-5'}


def test_what_is_outdated_is_neither_compared_nor_sliced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = {path for path in folder.iterdir() if 'best-2' in path.name}
    assert len(stale) == 1  # of two seeds
    monkeypatch.setattr(cells_module, 'outdated', lambda paths, table: stale)
    monkeypatch.setenv('HELLM_DATA', str(folder))
    count = np.arange(500)
    monkeypatch.setattr(users_module, '_count', lambda result: Users(count, count))
    (section,) = load(folder)
    analysis = analyse(section, ['best', 'lightgcn'], QUICK)
    assert 'best' in {row.model.key for row in analysis.tables[HEADLINE]}
    assert [one.reference.key for one in analysis.tests] == ['middle', 'lightgcn']
    assert [row.model.key for row in analysis.tests[1].rows] == ['middle']
    for part in analysis.slices:
        assert {model.key for model in part.models} == {'middle', 'lightgcn'}
        assert 'outdated (‡) is left out' in tables.slices(part, section.models).caption
