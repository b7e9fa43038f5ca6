from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks import child, run, table
from benchmarks.cell import (
    compact,
    digest,
    finished,
    model_bytes,
    run_cell,
    up_to_date,
)
from benchmarks.table import Cell, cells, load_table, read_cells
from hellm_pyg import allocator, experiment
from hellm_pyg.checkpoint import load_tensors
from hellm_pyg.config import load_config, recipes
from hellm_pyg.evaluation import Protocol
from hellm_pyg.evaluation.metrics import summarize
from tests.shop import NUM_USERS, write_shop

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / 'benchmarks' / 'paper').glob('*.yaml'))


PROTOCOLS = [['train+val', 'seen'], ['train', 'none']]


def write_table(folder: Path, cells: dict, **keys: object) -> Path:
    """A table over a small shop's files, under the data set 'beauty'."""
    shop = write_shop(folder)
    common = {
        'datasets': ['beauty'],
        'seeds': [1],
        'protocols': PROTOCOLS,
        'overrides': [*shop, 'eval.ks=[5]', 'train.metric=N@5'],
        'runs': str(folder / 'runs'),
    }
    path = folder / 'small.yaml'
    path.write_text(yaml.safe_dump({**common, 'cells': cells, **keys}, sort_keys=False))
    return path


SMALL = ['model.embedding_dim=8', 'train.epochs=2', 'train.eval_every=1']


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells run in this process, which has imported what they need."""

    def start(module: str, arguments: Sequence[str]) -> SimpleNamespace:
        assert module == 'benchmarks.run'
        code = run.main(arguments)
        return SimpleNamespace(wait=lambda: code)

    monkeypatch.setattr(child, 'start', start)
    monkeypatch.setattr(child, 'follow_parent', lambda: None)
    monkeypatch.setattr(allocator, 'keep_freed_memory', lambda: None)


@pytest.mark.parametrize('path', TABLES, ids=lambda path: path.stem)
def test_tables_of_the_paper_hold_valid_runs(path: Path) -> None:
    table = load_table(path)
    runs = list(cells(table))
    for dataset in table['datasets']:
        only = read_cells(table, [dataset])
        assert set(only) == {cell.key for cell in runs if cell.dataset == dataset}
    assert len({cell.key for cell in runs}) == len(runs)
    assert len({cell.run_dir for cell in runs}) == len(runs)
    # Of this table, or of one that runs before it.
    folders = {cell.run_dir for other in TABLES for cell in cells(load_table(other))}
    first = runs[0]
    for cell in runs:
        if (cell.dataset, cell.seed) != (first.dataset, first.seed):
            continue
        config = load_config(cell.recipe, cell.overrides)
        assert config.train.seed == cell.seed
        tables = {} if config.llm is None else config.llm.tables
        made = ('features:', 'random:')
        assert all(s in folders or s.startswith(made) for s in tables.values())
        if config.ensemble is not None:
            assert folders.issuperset(config.ensemble.members.values())


def test_reduced_figures_have_the_promised_sizes() -> None:
    folder = ROOT / 'benchmarks' / 'paper'
    curves = [cell.cell for cell in cells(load_table(folder / 'fig3_reduced.yaml'))]
    assert {curves.count(name) for name in curves} == {5}
    points = [c for c in cells(load_table(folder / 'fig4_reduced.yaml')) if c.grid]
    assert len(points) == 16
    assert {cell.dataset for cell in points} == {'beauty'}


def test_grids_are_expanded_with_typed_values(tmp_path: Path) -> None:
    grid = {'model.temperature': [0.1, 1.0], 'data.knn': [1, 5]}
    path = write_table(tmp_path, {'c': {'recipe': 'pretrain_best', 'grid': grid}})
    runs = list(cells(load_table(path)))
    names = [cell.name for cell in runs]
    assert names[1] == 'c-temperature=0.1-knn=5'
    assert len(set(names)) == 4
    assert {cell.cell for cell in runs} == {'c'}
    assert runs[1].grid == {'model.temperature': 0.1, 'data.knn': 5}
    config = load_config(runs[1].recipe, runs[1].overrides)
    assert (config.model['temperature'], config.data.knn) == (0.1, 5)


def test_cells_may_be_restricted(tmp_path: Path) -> None:
    both = {'recipe': 'sasrec'}
    path = write_table(
        tmp_path,
        {
            'a': both,
            'b': {**both, 'seeds': [1]},
            'c': {**both, 'datasets': ['toys']},
            'd': {'recipe': 'finetune_llara', 'tables': {'seq': 'a'}, 'seeds': [1]},
        },
        datasets=['beauty', 'toys'],
        seeds={'beauty': [1, 2], 'toys': [1]},
        overrides=[],
        runs='elsewhere',
    )
    table = load_table(path)
    keys = [cell.key for cell in cells(table)]
    assert keys == [
        'beauty-a-1', 'beauty-b-1', 'beauty-d-1', 'beauty-a-2',
        'toys-a-1', 'toys-b-1', 'toys-c-1', 'toys-d-1',
    ]  # fmt: skip
    (last,) = (cell for cell in cells(table) if cell.key == 'toys-d-1')
    assert last.overrides[-1] == 'llm.tables.seq=elsewhere/toys/a/1'
    assert last.run_dir == 'elsewhere/toys/d/1'
    some = [cell.key for cell in cells(table, ['beauty'], [7])]
    assert some == ['beauty-a-7', 'beauty-b-7', 'beauty-d-7']
    others = [cell.key for cell in cells(table, ['sports'], [7])]
    assert others == ['sports-a-7', 'sports-b-7', 'sports-c-7', 'sports-d-7']


def test_cells_may_have_more_seeds_than_the_table(tmp_path: Path) -> None:
    recipe = {'recipe': 'sasrec'}
    path = write_table(
        tmp_path,
        {
            'a': recipe,
            'b': {**recipe, 'seeds': {'toys': [2, 1, 3]}},
            'c': {**recipe, 'refit': 'b', 'seeds': {'toys': [3]}},
        },
        datasets=['beauty', 'toys'],
    )
    keys = [cell.key for cell in cells(load_table(path))]
    assert keys == [
        'beauty-a-1', 'beauty-b-1', 'beauty-c-1',
        'toys-a-1', 'toys-b-1', 'toys-b-2', 'toys-b-3', 'toys-c-3',
    ]  # fmt: skip


@pytest.mark.parametrize('own', [{'seeds': [2]}, {'datasets': ['toys']}])
def test_what_a_cell_reads_has_its_data_set_and_seed(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    recipe = {'recipe': 'sasrec'}
    cells = {'a': {**recipe, **own}, 'b': {**recipe, 'refit': 'a'}}
    path = write_table(tmp_path, cells, datasets=['beauty', 'toys'])
    with pytest.raises(ValueError, match=r"'beauty-b-1' reads \['beauty-a-1'\]"):
        load_table(path)


def test_what_a_cell_reads_is_among_the_data_sets_that_are_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {'recipe': 'sasrec'}
    cells = {
        'a': {**recipe, 'seeds': {'beauty': [1]}},
        'b': {**recipe, 'seeds': [1], 'refit': 'a'},
    }
    path = write_table(tmp_path, cells, seeds=[9])
    load_table(path)
    assert run.main([str(path), '--list', '--datasets', 'toys']) == 2
    assert "'toys-b-1' reads ['toys-a-1']" in capsys.readouterr().err


@pytest.mark.parametrize(
    'seeds', [2, None, '12', [1.5], [True], {'toy': [2]}, {'beauty': 2}]
)
def test_seeds_are_lists_of_numbers(tmp_path: Path, seeds: object) -> None:
    path = write_table(tmp_path, {'a': {'recipe': 'sasrec', 'seeds': seeds}})
    with pytest.raises(ValueError, match=r"small.yaml: a: 'seeds' needs whole numbers"):
        load_table(path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'cells': {'a': {'recipe': 'sasrec', 'grids': {}}}}, r"unknown \['grids'\]"),
        ({'cells': {'a': {'overrides': []}}}, r"small.yaml: a: needs \['recipe'\]"),
        ({'cells': {'a': None}}, r'got None'),
        ({'colour': 'red', 'cells': {}}, r"unknown \['colour'\]; known .*'seeds'"),
        (
            {'cells': {'a': {'recipe': 'sasrec', 'tables': {'seq': 'b'}}}},
            r"'tables' of 'a' needs names of cells \(got 'b'\)",
        ),
        (
            {'cells': {'a': {'recipe': 'ensemble', 'members': {'x': 'b'}}}},
            r"'members' of 'a' needs names of cells \(got 'b'\)",
        ),
        (
            {'cells': {'a': {'recipe': 'sasrec', 'refit': 'b'}}},
            r"'refit' of 'a' needs names of cells \(got 'b'\)",
        ),
        (
            {
                'base': 'a-knn=2',
                'cells': {'a': {'recipe': 'x', 'grid': {'data.knn': [1]}}},
            },
            r"'base' needs to be one of \['a-knn=1'\] \(got 'a-knn=2'\)",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, change: dict, message: str) -> None:
    path = write_table(tmp_path, {})
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load_table(path)


def test_refit_cell_trains_on_validation_items(tmp_path: Path) -> None:
    both = {'a': {'recipe': 'sasrec'}, 'b': {'recipe': 'sasrec', 'refit': 'a'}}
    path = write_table(tmp_path, both, runs='elsewhere')
    first, second = list(cells(load_table(path)))[:2]
    config = load_config(second.recipe, second.overrides)
    assert config.train.split == 'train+val'
    assert config.train.refit == first.run_dir


def test_tuned_recipe_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, 'RECIPES', tmp_path)
    monkeypatch.chdir(tmp_path)
    assert table.find_recipe('sasrec') == 'sasrec'
    (tmp_path / 'sasrec.yaml').write_text(recipes()['sasrec'].read_text())
    assert table.find_recipe('sasrec') == 'sasrec.yaml'
    monkeypatch.chdir(ROOT)
    assert table.find_recipe('sasrec') == str(tmp_path / 'sasrec.yaml')


@pytest.fixture(scope='module')
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Path, dict]:
    folder = tmp_path_factory.mktemp('run')
    path = write_table(folder, {'a': {'recipe': 'sasrec', 'overrides': SMALL}})
    table = load_table(path)
    (cell,) = cells(table)
    run_cell(cell, table['protocols'], folder / 'a.json')
    return cell, folder / 'a.json', json.loads((folder / 'a.json').read_text())


def test_result_says_where_it_comes_from(result: tuple[Cell, Path, dict]) -> None:
    cell, path, found = result
    assert found['config']['train']['seed'] == found['seed'] == 1
    assert found['config']['model']['embedding_dim'] == 8
    assert len(found['data_fingerprint']) == 64
    assert {'python', 'torch', 'torch-geometric'} <= set(found['versions'])
    assert found['commit'] is None or len(found['commit']) >= 40
    assert found['parameters'] == found['trained_parameters'] > 0
    assert found['peak_memory_bytes']['process'] > 1e7
    weights = Path(cell.run_dir) / 'model.safetensors'
    assert found['model_bytes'] == weights.stat().st_size
    assert found['validation_users'] == NUM_USERS
    assert (found['device'], found['threads']) == ('cpu', torch.get_num_threads())
    assert found['seconds']['training'] > 0
    assert [len(found['validation']['curve']), found['validation']['epochs']] == [2, 2]
    assert set(found['test']) == {
        'history=train+val, mask=seen',
        'history=train, mask=none',
    }
    command = shlex.split(found['command'])
    assert command[:3] == ['hellm', 'pretrain', cell.recipe]
    assert finished(cell, PROTOCOLS, path)


def test_ranks_give_the_metrics_again(result: tuple[Cell, Path, dict]) -> None:
    cell, _, found = result
    for protocol, packed in found['ranks'].items():
        raw = zlib.decompress(base64.b64decode(packed['data']))
        rank = torch.from_numpy(np.frombuffer(raw, '<u2').astype('float32')) / 2
        assert rank.numel() == found['test'][protocol]['users'] == NUM_USERS
        expected = found['test'][protocol]['metrics']
        assert summarize(rank, [5]) == pytest.approx(expected)
    saved = load_tensors(Path(cell.run_dir) / 'ranks-test-train-none.safetensors')[
        'rank'
    ]
    assert torch.equal(rank, saved)


def test_far_ranks_are_cut() -> None:
    raw = zlib.decompress(base64.b64decode(compact(torch.tensor([1.5, 5e4]))['data']))
    assert np.frombuffer(raw, '<u2').tolist() == [3, 2000]


def test_result_of_another_configuration_is_not_taken(
    result: tuple[Cell, Path, dict], tmp_path: Path
) -> None:
    cell, path, found = result
    assert not finished(cell, PROTOCOLS, tmp_path / 'none.json')
    other = [*cell.overrides, 'train.lr=0.5']
    assert not finished(cell._replace(overrides=other), PROTOCOLS, path)
    later = [*cell.overrides, 'train.save_minutes=1']
    assert finished(cell._replace(overrides=later), PROTOCOLS, path)
    old = tmp_path / 'old.json'
    kept = {'recipe': cell.recipe, 'overrides': cell.overrides}
    old.write_text(json.dumps(kept))
    assert finished(cell, PROTOCOLS, old)
    assert not finished(cell._replace(overrides=other), PROTOCOLS, old)
    old.write_text(json.dumps({**found, 'config': {'gone': 1}}))
    assert not finished(cell, PROTOCOLS, old)


def test_result_that_names_a_default_is_taken(
    result: tuple[Cell, Path, dict], tmp_path: Path
) -> None:
    cell, _, found = result
    named = found['config']['model']
    bare = {key: value for key, value in named.items() if key != 'smoothing'}
    assert bare != named

    def is_taken(**model: object) -> bool:
        config = {**found['config'], 'model': {**bare, **model}}
        (tmp_path / 'named.json').write_text(json.dumps({**found, 'config': config}))
        return finished(cell, PROTOCOLS, tmp_path / 'named.json')

    assert is_taken()
    assert is_taken(smoothing=0.0)
    assert not is_taken(smoothing=0.1)
    assert not is_taken(name='Gone')


def test_lost_run_that_finds_the_same_leaves_its_result(
    result: tuple[Cell, Path, dict], tmp_path: Path
) -> None:
    cell, _, found = result
    kept = tmp_path / 'a.json'
    kept.write_text(json.dumps({**found, 'commit': 'former'}))
    again = cell._replace(run_dir=str(tmp_path / 'run'))
    run_cell(again, PROTOCOLS, kept)
    assert json.loads(kept.read_text())['commit'] == 'former'
    found['validation']['metrics']['N@5'] += 0.001
    kept.write_text(json.dumps({**found, 'commit': 'former'}))
    run_cell(again, PROTOCOLS, kept)
    assert json.loads(kept.read_text())['commit'] != 'former'


def test_a_result_needs_those_of_all_that_it_reads(
    result: tuple[Cell, Path, dict], tmp_path: Path
) -> None:
    cell, _, found = result
    names = ('seq', 'hellm', 'both')
    keys = [f'beauty-{name}-1' for name in names]
    table = {
        key: cell._replace(name=name, seed=1, sources=keys[:index])
        for index, (name, key) in enumerate(zip(names, keys, strict=True))
    }

    def states() -> list[bool]:
        return [up_to_date(c, table, PROTOCOLS, tmp_path) for c in table.values()]

    def write(key: str, result: dict) -> None:
        (tmp_path / f'{key}.json').write_text(json.dumps(result))

    for key in keys:
        write(key, found)
    assert states() == [True, False, False]  # as they do not tell what they read
    for index, key in enumerate(keys):
        read = {k: digest(tmp_path / f'{k}.json') for k in keys[:index]}
        write(key, {**found, 'read': read})
    assert states() == [True, True, True]
    again = {**found['validation'], 'metrics': {'N@5': 0.5}}
    write(keys[0], {**found, 'validation': again})
    assert states() == [True, False, False]
    write(keys[0], found)
    other = [*cell.overrides, 'train.lr=0.5']
    table[keys[1]] = table[keys[1]]._replace(overrides=other)
    assert states() == [True, False, False]
    (tmp_path / f'{keys[0]}.json').unlink()
    assert states() == [False, False, False]
    write(keys[0], found)
    del table[keys[1]]
    assert states() == [True, False]


def test_teachers_replace_those_of_the_recipe() -> None:
    seq = {'recipe': 'sasrec'}
    own = {'recipe': 'sasrec', 'tables': {}, 'teachers': {'a': 'seq', 'b': 'seq'}}
    section = {'datasets': ['beauty'], 'seeds': [1], 'protocols': [], 'runs': 'r'}
    (_, cell) = cells({**section, 'cells': {'seq': seq, 'taught': own}})
    assert cell.overrides[-3:] == [
        'train.distill.runs={}',
        'train.distill.runs.a=r/beauty/seq/1',
        'train.distill.runs.b=r/beauty/seq/1',
    ]
    assert cell.sources == ['beauty-seq-1']


def test_tables_say_what_their_cells_read() -> None:
    table = load_table(ROOT / 'benchmarks' / 'paper' / 'table1.yaml')
    found = {cell.key: cell.sources for cell in cells(table)}
    assert found['toys-sasrec-2024'] == []
    assert set(found['toys-ensemble_refit-2024']) == {
        f'toys-{name}-2024'
        for name in (
            'hellm_refit',
            'hellm_pre_refit',
            'sasrec_smoothed_refit',
            'item_knn_refit',
            'ensemble',
        )
    }
    assert set(found['beauty-hellm-2025']) == {
        'beauty-hellm_pre-2025',
        'beauty-sasrec_smoothed-2025',
        'beauty-sasrec-2025',
    }


def test_an_ensemble_of_former_runs_is_refused(tmp_path: Path) -> None:
    small = [*write_shop(tmp_path), 'model.embedding_dim=8', 'train.epochs=1']
    member = tmp_path / 'seq'
    experiment.pretrain(load_config('sasrec', small), member)
    overrides = [*write_shop(tmp_path), f'ensemble.members={{seq: {member}}}']
    own = (
        'both',
        'beauty',
        1,
        'ensemble',
        overrides,
        'both',
        {},
        str(tmp_path / 'all'),
    )
    cell = Cell(*own, sources=['beauty-seq-1'])
    (tmp_path / 'beauty-seq-1.json').write_text('{}')
    run_cell(cell, [['train+val', 'seen']], tmp_path / 'both.json')
    read = json.loads((tmp_path / 'both.json').read_text())['read']
    assert read == {'beauty-seq-1': digest(tmp_path / 'beauty-seq-1.json')}
    shutil.rmtree(member)
    experiment.pretrain(load_config('sasrec', [*small, 'train.seed=5']), member)
    with pytest.raises(ValueError, match=r"an ensemble of former runs of \['seq'\]"):
        run_cell(cell, [['train+val', 'seen']], tmp_path / 'both.json')


def test_result_of_other_protocols_is_not_taken(
    result: tuple[Cell, Path, dict], tmp_path: Path
) -> None:
    cell, path, found = result
    assert finished(cell, PROTOCOLS[::-1], path)
    assert not finished(cell, PROTOCOLS[:1], path)
    assert not finished(cell, [*PROTOCOLS, ['train', 'train']], path)
    assert not finished(cell, [], path)
    (tmp_path / 'a.json').write_text(json.dumps({**found, 'test': None}))
    with pytest.raises(ValueError, match=r"a\.json' is damaged"):
        finished(cell, PROTOCOLS, tmp_path / 'a.json')


@pytest.mark.parametrize(
    ('content', 'message'),
    [('{"a', 'not JSON'), ('[]', 'got a list'), ('{}', "lacks 'recipe', 'overrides'")],
)
def test_a_damaged_result_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = write_table(tmp_path, {'a': {'recipe': 'sasrec', 'overrides': SMALL}})
    results = tmp_path / 'results'
    (results / 'small').mkdir(parents=True)
    (results / 'small' / 'beauty-a-1.json').write_text(content)
    assert run.main([str(path), '--results', str(results)]) == 1
    told = (results / 'small' / 'beauty-a-1.failed.json').read_text()
    assert "beauty-a-1.json' is damaged" in told
    assert message in json.loads(told)['error']
    assert 'FAILED: ' in capsys.readouterr().err


def test_help_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(['--help'])
    output = capsys.readouterr().out
    assert output.startswith('usage: hellm benchmark [-h]')
    assert (
        '\n    hellm benchmark benchmarks/paper/table1.yaml --data ../data\n' in output
    )


def test_floors_have_results(tmp_path: Path) -> None:
    overrides = ['model.name=Popularity']
    path = write_table(tmp_path, {'p': {'recipe': 'sasrec', 'overrides': overrides}})
    table = load_table(path)
    (cell,) = cells(table)
    run_cell(cell, table['protocols'], tmp_path / 'p.json')
    found = json.loads((tmp_path / 'p.json').read_text())
    assert found['parameters'] == found['trained_parameters'] == 0
    assert len(found['data_fingerprint']) == 64
    assert (found['device'], found['threads']) == ('cpu', torch.get_num_threads())
    assert found['seconds']['training'] > 0


def test_looks_at_the_test_items_are_counted(tmp_path: Path) -> None:
    floor = {'recipe': 'sasrec', 'overrides': ['model.name=Popularity']}
    table = load_table(write_table(tmp_path, {'p': floor}))
    (cell,) = cells(table)
    path = tmp_path / 'p.json'
    for reads, recall in ((1, 0.5), (2, 0.4)):
        run_cell(cell, table['protocols'], path)
        found = json.loads(path.read_text())
        assert found['test_reads'] == reads
        found['test'][str(Protocol())]['metrics']['R@5'] = recall  # a former model's
        path.write_text(json.dumps(found))
    run_cell(cell, [], tmp_path / 'validation.json')
    assert json.loads((tmp_path / 'validation.json').read_text())['test_reads'] == 0


def test_model_files_are_counted_with_members_but_no_states(tmp_path: Path) -> None:
    for name, size in (
        ('model/hellm.safetensors', 1),
        ('model/hellm.json', 10),
        ('members/a/model.safetensors', 100),
        ('members/b/model/adapter_model.safetensors', 1000),
        ('state/weights.safetensors', 10_000),
        ('embeddings.safetensors', 100_000),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'0' * size)
    assert model_bytes(tmp_path) == 1101


@pytest.mark.usefixtures('one_process')
def test_failure_is_reported_and_does_not_stop_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    floor = {'recipe': 'sasrec', 'overrides': ['model.name=Popularity']}
    wrong = {'recipe': 'sasrec', 'overrides': [*SMALL, 'model.num_heads=3']}
    unknown = {'recipe': 'sasrec', 'overrides': ['model.nme=Popularity', 'train.x=1']}
    path = write_table(tmp_path, {'wrong': wrong, 'unknown': unknown, 'good': floor})
    arguments = [str(path), '--results', str(tmp_path / 'results')]
    assert run.main([*arguments, '--only', '*']) == 1
    folder = tmp_path / 'results' / 'small'
    assert {p.name for p in folder.iterdir()} == {
        'beauty-good-1.json',
        'beauty-wrong-1.failed.json',
        'beauty-unknown-1.failed.json',
    }
    told = json.loads((folder / 'beauty-wrong-1.failed.json').read_text())
    assert told['name'] == 'wrong'
    assert told['error'].startswith('ValueError: ')
    assert 'num_heads' in told['error']
    told = json.loads((folder / 'beauty-unknown-1.failed.json').read_text())
    assert "unknown key 'train.x'" in told['error']
    error = capfd.readouterr().err
    assert "unknown key 'train.x'" in error
    assert error.count('FAILED: ') == 2
    # Mended, it is run; what is done is not.
    table = yaml.safe_load(path.read_text())
    table['cells']['wrong'] = floor
    path.write_text(yaml.safe_dump(table))
    assert run.main([*arguments, '--only', 'wrong', 'good']) == 0
    assert not (folder / 'beauty-wrong-1.failed.json').exists()
    assert 'beauty-good-1: done' in capfd.readouterr().out
    stale = folder / 'beauty-good-1.failed.json'
    stale.write_text('{"error": "of a damaged file that is whole again"}')
    assert run.main([*arguments, '--only', 'good', '--list']) == 0
    assert stale.exists()
    assert run.main([*arguments, '--only', 'good']) == 0
    assert not stale.exists()
    assert run.main([*arguments, '--only', 'nothing']) == 2


def test_wrong_tables_and_data_sets_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / 'table.yaml'
    cells = 'cells: {a: {recipe: sasrec}}'
    for text, arguments, message in [
        (f'[{cells}', [], 'cannot be read as a table: '),
        (cells, [], "needs ['datasets', 'protocols', 'seeds']"),
        (
            f'{{datasets: [toys], seeds: {{toys: [1]}}, protocols: [], {cells}}}',
            ['--datasets', 'toy'],
            "'--datasets' needs some of ['toys'], of which the table has seeds, or "
            "'--seeds' beside it (got 'toy')",
        ),
    ]:
        path.write_text(text)
        assert run.main([str(path), '--list', *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures('one_process')
def test_what_has_gone_is_trained_again_where_it_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    floor = {'recipe': 'sasrec', 'overrides': ['model.name=Popularity']}
    path = write_table(tmp_path, {'a': floor, 'b': {**floor, 'refit': 'a'}})
    results = tmp_path / 'results'

    def done() -> list[str]:
        assert run.main([str(path), '--results', str(results)]) == 0
        lines = capfd.readouterr().out.splitlines()
        return [line.partition(':')[0] for line in lines if line.endswith(': done')]

    assert done() == []
    shutil.rmtree(tmp_path / 'runs')  # as in a fresh checkout
    assert done() == ['beauty-a-1', 'beauty-b-1']
    assert not (tmp_path / 'runs').exists()
    (results / 'small' / 'beauty-b-1.json').unlink()
    assert done() == []
    assert done() == ['beauty-a-1', 'beauty-b-1']


@pytest.mark.usefixtures('one_process')
def test_what_is_read_needs_to_be_there_or_among_the_chosen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    floor = {'recipe': 'sasrec', 'overrides': ['model.name=Popularity']}
    path = write_table(tmp_path, {'a': floor, 'b': {**floor, 'refit': 'a'}})
    results = tmp_path / 'results'
    arguments = [str(path), '--results', str(results)]
    failed = results / 'small' / 'beauty-b-1.failed.json'
    message = "'--only' needs beauty-a-1, too, which beauty-b-1 reads"
    assert run.main([*arguments, '--only', 'beauty-b-1']) == 1
    assert message in json.loads(failed.read_text())['error']
    assert run.main([*arguments, '--only', 'beauty-b-1', '--list']) == 0
    assert message in capfd.readouterr().out
    assert run.main([*arguments, '--only', 'beauty-b-1', 'beauty-a-1']) == 0
    assert not failed.exists()
    shutil.rmtree(tmp_path / 'runs')
    assert run.main([*arguments, '--only', 'beauty-b-1']) == 0  # it is done


@pytest.mark.usefixtures('one_process')
def test_what_another_table_has_trained_anew_is_measured_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path, {'a': {'recipe': 'sasrec', 'overrides': SMALL}})
    results = tmp_path / 'results'
    arguments = [str(path), '--results', str(results)]
    assert run.main(arguments) == 0
    result = results / 'small' / 'beauty-a-1.json'
    found = json.loads(result.read_text())
    former = json.loads(result.read_text())
    former['validation']['metrics']['N@5'] += 0.001
    result.write_text(json.dumps(former))
    for expected, done in ((former, False), (found, True)):
        capfd.readouterr()
        assert json.loads(result.read_text())['validation'] == expected['validation']
        assert run.main(arguments) == 0
        assert (': done' in capfd.readouterr().out) == done
    shutil.rmtree(tmp_path / 'runs')
    assert run.main(arguments) == 0
    assert not (tmp_path / 'runs').exists()


def test_list_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_table(tmp_path, {'a': {'recipe': 'sasrec'}})
    arguments = ['--list', '--seeds', '7', '--results', str(tmp_path / 'results')]
    assert run.main([str(path), *arguments]) == 0
    assert capsys.readouterr().out.startswith('beauty-a-7: dataset=beauty train.seed=7')
    assert not (tmp_path / 'results').exists()


def test_killed_table_goes_on(tmp_path: Path) -> None:
    overrides = [*SMALL, 'train.epochs=12', 'train.patience=12', 'train.batch_size=2']
    path = write_table(tmp_path, {'a': {'recipe': 'sasrec', 'overrides': overrides}})
    results = tmp_path / 'results'
    command = [sys.executable, '-m', 'benchmarks.run', str(path)]
    command += ['--results', str(results)]
    log = tmp_path / 'runs' / 'beauty' / 'a' / '1' / 'log.jsonl'
    first = subprocess.Popen(command, cwd=ROOT)
    wait_for(lambda: log.is_file() and '"metrics"' in log.read_text())
    first.send_signal(signal.SIGKILL)
    first.wait()
    size = -1
    # The orphan notices that its parent is gone, saves and stops.
    while size != (size := log.stat().st_size):
        time.sleep(1)
    assert not (results / 'small' / 'beauty-a-1.json').exists()
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads((results / 'small' / 'beauty-a-1.json').read_text())
    assert found['validation']['epochs'] == 12


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_data_folder_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HELLM_DATA', '/nowhere')
    path = write_table(tmp_path, {'a': {'recipe': 'sasrec'}})
    run.main([str(path), '--list', '--data', str(tmp_path)])
    assert os.environ['HELLM_DATA'] == str(tmp_path)
