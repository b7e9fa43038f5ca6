from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.report.cells import Result, load
from benchmarks.report.ladder import Ladder, changes, difference, table
from tests.benchmarks.fabricate import ranks, result, write

CONFIG: dict[str, Any] = {
    'data': {'root': 'here', 'knn': 10},
    'model': {},
    'llm': {'num_layers': 4, 'dropout': 0.3, 'prefix': {'rank': 8}},
    'train': {'seed': 1, 'lr': 1e-3},
}


def rung(folder: Path, name: str, value: float, seed: int = 1, **llm: Any) -> Path:
    """A cell of which validation alone was read."""
    cell, _, point = name.partition('-')
    key, _, setting = point.partition('=')
    content = result(
        name,
        ranks(9, 1, 1),
        seed=seed,
        cell=cell,
        grid={f'llm.{key}': int(setting)} if key else {},
        recipe='finetune_best',
        test={},
        ranks={},
        config={**CONFIG, 'llm': {**CONFIG['llm'], **llm}},
    )
    content['validation']['metrics'] = {'N@10': value, 'R@10': 2 * value}
    return write(folder, content)


def test_order_and_base_of_the_tables_file(tmp_path: Path) -> None:
    folder = tmp_path / 'levers'
    for name in ('dropout-dropout=1', 'layers-num_layers=8', 'best', 'sasrec'):
        rung(folder, name, 0.1)
    (section,) = load(folder)
    assert section.is_ladder
    ladder = Ladder.of(section)
    assert [model.key for model in ladder.models] == [
        'sasrec',
        'best',
        'layers-num_layers=8',
        'dropout-dropout=1',  # the file has no such point
    ]
    assert ladder.base is ladder.models[1]
    assert ladder.compared == ladder.models[1:]  # those of the base's family
    other = Ladder.of(section, ['absent', 'sasrec'])
    assert other.base is other.models[0]


def test_order_without_a_file_is_by_cell_and_point(tmp_path: Path) -> None:
    for name in ('b-rank=10', 'b-rank=9', 'c', 'a-rank=20'):
        rung(tmp_path / 'mine', name, 0.1)
    ladder = Ladder.of(load(tmp_path / 'mine')[0])
    assert [m.key for m in ladder.models] == ['a-rank=20', 'b-rank=9', 'b-rank=10', 'c']
    assert (ladder.base, ladder.named) == (None, None)
    assert ladder.compared == ladder.models


def test_differences_are_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    for seed, value in ((1, 0.10), (2, 0.20), (3, 0.90)):
        rung(tmp_path, 'base', value, seed)
    rung(tmp_path, 'one', 0.12, 1)
    rung(tmp_path, 'two', 0.12, 1)
    rung(tmp_path, 'two', 0.21, 2)
    rung(tmp_path, 'none', 0.5, 7)
    models = {model.key: model for model in load(tmp_path)[0].everything}
    base = models['base']
    assert difference(models['one'], base, 'N@10') == pytest.approx(0.2)
    assert difference(models['two'], base, 'R@10') == pytest.approx(0.1)
    assert difference(models['none'], base, 'N@10') is None


def _result(**content: Any) -> Result:
    whole = {'recipe': 'finetune_best', 'config': CONFIG, 'overrides': []}
    return Result(Path('x'), {**whole, **content})


def test_changes_are_read_from_the_configurations() -> None:
    base = _result()
    other = {
        **CONFIG,
        'data': {'root': 'there', 'knn': 10},
        'llm': {'num_layers': 8, 'dropout': None, 'prefix': None},
        'train': {'seed': 2, 'lr': 3e-4},
    }
    assert changes(_result(config=other), base) == (
        'llm.num_layers 4 → 8, llm.dropout 0.3 → none, without llm.prefix, '
        'train.lr 0.001 → 0.0003'
    )
    assert changes(base, _result(config=other)).count('with llm.prefix') == 1
    assert changes(_result(), base) == '-'


def test_tables_of_another_seed_are_no_change() -> None:
    runs = (('runs/sasrec/1', 1), ('runs/sasrec/2', 2), ('runs/x/2', 2))
    one, two, other = (
        _result(config={'llm': {'tables': {'seq': folder}}, 'train': {'seed': seed}})
        for folder, seed in runs
    )
    assert changes(two, one) == '-'
    assert changes(other, one) == 'llm.tables.seq runs/sasrec → runs/x'


def test_teachers_of_another_seed_are_no_change() -> None:
    runs = (('runs/sasrec/1', 1), ('runs/sasrec/2', 2), ('runs/x/2', 2))
    one, two, other = (
        _result(
            config={
                'llm': {'tables': {}},
                'train': {'seed': seed, 'distill': {'runs': {'seq': folder}}},
            }
        )
        for folder, seed in runs
    )
    assert changes(two, one) == '-'
    assert changes(other, one) == 'train.distill.runs.seq runs/sasrec → runs/x'


def test_another_kind_of_model_is_named_by_its_recipe() -> None:
    own = {'config': {'model': {'name': 'SASRec'}}, 'recipe': 'a/sasrec.yaml'}
    told = ['dataset=beauty', 'train.seed=1', 'model.dropout=0.5', 'model.dropout=0.7']
    found = changes(_result(**own, overrides=told), _result())
    assert found == 'recipe sasrec, model.dropout = 0.7'


def test_without_configurations_the_overrides_are_told() -> None:
    base = _result(config=None, overrides=['train.epochs=6', 'train.lr=0.1'])
    other = _result(config=None, overrides=['train.epochs=6', 'train.lr=0.2'])
    assert changes(other, base) == 'train.lr = 0.2'
    assert changes(other, None) == (
        'recipe finetune_best, train.epochs = 6, train.lr = 0.2'
    )


def test_table(tmp_path: Path) -> None:
    folder = tmp_path / 'levers'
    for seed, value in ((1, 0.1), (2, 0.2)):
        rung(folder, 'best', value, seed)
    rung(folder, 'layers-num_layers=8', 0.11, num_layers=8)
    shown = table(Ladder.of(load(folder)[0]))
    cells = [dict(zip(shown.columns, row, strict=True)) for row in shown.rows]
    base, other = cells
    assert (base['changes'].text, base['seeds'].text) == ('the base', '2')
    own = base['validation\nN@10']
    spread = np.std([0.1, 0.2], ddof=1)
    assert (own.text, own.spread, own.best) == ('0.1500', f'± {spread:.4f}', True)
    assert other['changes'].text == 'llm.num_layers 4 → 8'
    assert other['validation\nR@10'].text == '0.2200'
    assert other['validation\nR@10'].spread == ''
    assert [c.text for c in shown.rows[0] if c.text == '-'] == ['-', '-', '-']
    assert [c.text for c in shown.rows[1]].count('+10.0 %') == 2
    assert 'The base is best' in shown.caption
    assert 'their standard deviation' in shown.caption


def test_table_whose_base_has_no_result(tmp_path: Path) -> None:
    rung(tmp_path / 'levers', 'layers-num_layers=8', 0.11)
    shown = table(Ladder.of(load(tmp_path / 'levers')[0]))
    assert 'The base, best, has no result yet.' in shown.caption
    assert 'One seed each' in shown.caption
    assert not any('against' in column for column in shown.columns)
