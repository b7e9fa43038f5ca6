from pathlib import Path

import pytest

from benchmarks.report.analysis import Settings, analyse
from benchmarks.report.cells import load
from benchmarks.report.document import build
from benchmarks.report.expectations import expectations
from benchmarks.report.tables import Table
from tests.benchmarks.fabricate import (
    HEADLINE,
    TRAIN,
    metrics,
    ranks,
    refit,
    result,
    write,
)

QUICK = Settings(resamples=50, signs=20)


def found(folder: Path) -> list[Table]:
    return expectations(analyse(load(folder)[0], [], QUICK))


@pytest.fixture(autouse=True)
def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are made up; the data sets of their names are others."""
    monkeypatch.delenv('HELLM_DATA', raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # Printed: FREEDOM before LATTICE before LightGCN.
    for name, quality in (('lightgcn', 2), ('lattice', 9), ('freedom', 4)):
        write(tmp_path, result(name, ranks(400, quality, 1)))
    return tmp_path


def test_printed_beside_measured_under_their_protocol(folder: Path) -> None:
    (table,) = found(folder)
    assert table.title.startswith('HeLLM (arXiv:2504.10541), Table 1')
    assert [row[0].text for row in table.rows] == ['FREEDOM', 'LATTICE', 'LightGCN']
    row = dict(enumerate(table.rows[2]))
    (section,) = load(folder)
    (model,) = (m for m in section.models if m.key == 'lightgcn')
    measured = metrics(model.results[0].ranks[TRAIN])
    assert row[2].text == TRAIN
    assert [row[3].text, row[6].text] == ['0.0426', '0.0208']
    assert row[4].text == f'{measured["R@10"]:.4f}'
    assert row[4].interval.startswith('[0.')
    assert row[8].text == f'+{measured["N@10"] / 0.0208 - 1:.1%}'.replace('%', ' %')
    assert '2 of 3 pairs of printed rows are in the printed order' in table.caption


def test_validation_chooses_who_stands_for_a_row(folder: Path) -> None:
    for name, quality, value in (('lattice_a', 1, 0.9), ('lattice_b', 90, 0.8)):
        content = result(name, ranks(400, quality, 1))
        content['validation']['metrics']['N@10'] = value
        write(folder, content)
    (table,) = found(folder)
    assert len(table.rows) == 5
    # The worse on test is the better on validation: LATTICE is below LightGCN now.
    assert '2 of 3 pairs' in table.caption
    content = result('lattice_c', ranks(400, 3, 1))
    content['validation']['metrics']['N@10'] = 0.95
    write(folder, content)
    assert '3 of 3 pairs' in found(folder)[0].caption


def test_validation_cannot_choose_what_saw_its_items(folder: Path) -> None:
    write(folder, refit('freedom_refit', ranks(400, 1, 1)))
    (table,) = found(folder)
    assert 'Trained on the validation items, too: FREEDOM, refit.' in table.caption
    assert '2 of 3 pairs' in table.caption  # as without it
    (folder / 'beauty-freedom-1.json').unlink()
    assert '1 of 1 pair ' in found(folder)[0].caption


def test_rows_of_another_protocol_are_left_out(folder: Path) -> None:
    content = result('hellm', ranks(400, 9, 1))  # printed under mask=none
    write(folder, content)
    assert all(row[0].text != 'HeLLM' for t in found(folder) for row in t.rows)
    tested = content['test'][TRAIN]
    content['test']['history=train+val, mask=none'] = tested
    write(folder, content)
    one, three = found(folder)
    assert one.rows[0][0].text == three.rows[0][0].text == 'HeLLM'
    assert three.columns[3] == 'printed\nR@20'
    assert three.rows[0][4].text == f'{tested["metrics"]["R@20"]:.4f}'
    assert 'pair' not in three.caption


def test_nothing_is_expected_of_other_data(tmp_path: Path) -> None:
    folder = tmp_path / 'rehearsal'
    for key in ('drop_last', 'sample'):
        own = {'config': {'data': {key: 1}}}
        write(folder, result('lightgcn', ranks(400, 3, 1), **own))
        document = build([folder], settings=QUICK)
        (part,) = document.parts
        assert part.expectations == part.printed == []
        assert all(row.printed is None for row in part.analysis.tables[HEADLINE])


def test_nothing_is_expected_of_what_nobody_has_printed(tmp_path: Path) -> None:
    write(tmp_path, result('sasrec', ranks(20, 1, 1)))
    assert found(tmp_path) == []
