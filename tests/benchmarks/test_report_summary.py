from pathlib import Path

import numpy as np
import pytest

from benchmarks.report.analysis import Analysis, Settings, analyse
from benchmarks.report.cells import load, per_user
from benchmarks.report.summary import overview
from benchmarks.report.tables import Table
from tests.benchmarks.fabricate import HEADLINE, TRAIN, ranks, refit, result, write

QUICK = Settings(resamples=20, signs=20)


def found(folder: Path) -> list[Analysis]:
    return [analyse(section, [], QUICK) for section in load(folder)]


@pytest.fixture(autouse=True)
def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are made up; the data sets of their names are others."""
    monkeypatch.delenv('HELLM_DATA', raising=False)


@pytest.fixture
def shown(tmp_path: Path) -> Table:
    folder = tmp_path / 'table1'
    for seed in (1, 2, 3):
        write(folder, result('lightgcn', ranks(300, 1, seed), seed=seed))
    write(folder, result('sasrec_bce', ranks(300, 5, 9)))
    write(folder, result('sasrec', ranks(300, 90, 9)))
    for name, quality in (('lightgcn', 2), ('sasrec_bce', 1)):
        write(folder, result(name, ranks(200, quality, 4), dataset='toys'))
    write(folder, result('lightgcn', ranks(10, 1, 1), dataset='books'))
    content = result('lightgcn', ranks(10, 1, 1), dataset='games')
    del content['test'][HEADLINE], content['ranks'][HEADLINE]
    write(folder, content)
    (table,) = overview(found(folder))
    return table


def test_models_by_data_sets(shown: Table) -> None:
    assert shown.title == 'Overview of Table 1'
    names = ('Beauty', 'Books', 'Toys')
    metrics = [f'{name}\n{metric}' for name in names for metric in ('R@10', 'N@10')]
    assert shown.columns == ['model', 'seeds', *metrics]
    rows = {row[0].text: row for row in shown.rows}
    assert list(rows) == ['LightGCN', 'SASRec, BCE', 'SASRec']
    assert [row[1].text for row in rows.values()] == ['3, 1, 1', '1, -, 1', '1, -, -']
    assert [cell.text for cell in rows['SASRec'][4:]] == ['-'] * 4


def test_mean_and_deviation_over_the_seeds_of_each_model(shown: Table) -> None:
    rows = {row[0].text: row for row in shown.rows}
    each = [per_user(ranks(300, 1, seed)).mean(axis=0)[:2] for seed in (1, 2, 3)]
    for cell, values in zip(rows['LightGCN'][2:4], np.transpose(each), strict=True):
        assert cell.text == f'{values.mean():.4f}'
        assert cell.spread == f'± {values.std(ddof=1):.4f}'
    for cell in (*rows['LightGCN'][4:], *rows['SASRec, BCE'][2:]):
        assert cell.spread == ''


def test_best_of_each_data_set_is_bold(shown: Table) -> None:
    bold = [[cell.best for cell in row[2:]] for row in shown.rows]
    assert np.array(bold).astype(int).tolist() == [
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
    ]


def test_printed_numbers_stand_beside(shown: Table) -> None:
    rows = {row[0].text: row for row in shown.rows}
    assert rows['LightGCN'][2].interval == '(printed 0.0426†)'
    assert rows['LightGCN'][4].interval == ''  # nobody printed Books
    assert rows['SASRec, BCE'][7].interval == '(printed 0.0374†)'
    assert rows['SASRec'][2].interval == ''


def test_what_saw_the_validation_items_has_its_own_overview(tmp_path: Path) -> None:
    for dataset in ('beauty', 'toys'):
        write(tmp_path, result('sasrec', ranks(90, 1, 1), dataset=dataset))
    write(tmp_path, refit('sasrec_refit', ranks(90, 50, 1), dataset='toys'))
    plain, refits = overview(found(tmp_path))
    assert [row[0].text for row in plain.rows] == ['SASRec']
    assert all(cell.best for cell in plain.rows[0][2:])
    assert 'validation items' not in plain.title + plain.caption
    assert refits.title == f'{plain.title}, trained on the validation items, too'
    assert refits.caption.endswith('items, too: SASRec, refit.')
    (row,) = refits.rows
    assert [(cell.text == '-', cell.best) for cell in row[2:]] == [
        *[(True, False)] * 2,
        *[(False, True)] * 2,
    ]


def test_one_data_set_needs_no_overview(tmp_path: Path) -> None:
    write(tmp_path / 'a', result('lightgcn', ranks(20, 1, 1)))
    write(tmp_path / 'b', result('lightgcn', ranks(20, 1, 1), dataset='toys'))
    assert overview([*found(tmp_path / 'a'), *found(tmp_path / 'b')]) == []
    assert TRAIN in found(tmp_path / 'a')[0].tables
