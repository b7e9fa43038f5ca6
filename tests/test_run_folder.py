"""Ensembles of runs: folders that hold all they need."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hellm_pyg import checkpoint, experiment, run_folder
from hellm_pyg.config import Config, load_config, save_config
from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.evaluation import evaluate
from hellm_pyg.nn.models import Ensemble, GraphRecommender, SequenceRecommender
from hellm_pyg.recommendation import export_top_n, recommend
from hellm_pyg.run_folder import check_config, differing
from tests.shop import NUM_ITEMS, NUM_USERS, turn_around, write_llm, write_shop

ROOT = Path(__file__).parents[1]
SMALL = ['model.embedding_dim=8', 'train.eval_every=1', 'train.epochs=3']
MEMBERS = ('hellm', 'graph', 'seq', 'floor')
GRID = 'ensemble.grid=[0, 0.3, 1]'


def shop_config(folder: Path, recipe: str, *overrides: str) -> Config:
    return load_config(recipe, [*write_shop(folder), *overrides])


def ensemble_config(
    shop: Path, *overrides: str, members: tuple[str, ...] = MEMBERS
) -> Config:
    folders = [f'ensemble.members.{name}={shop / name}' for name in members]
    empty = ['ensemble.members={}', GRID]
    return shop_config(shop, 'ensemble', *empty, *folders, *overrides)


@pytest.fixture(scope='module')
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with a run of every kind."""
    folder = tmp_path_factory.mktemp('shop')
    for name, recipe, *own in (
        ('graph', 'pretrain_best', *SMALL),
        ('seq', 'sasrec', *SMALL),
        ('floor', 'sasrec', 'model.name=Popularity'),
    ):
        experiment.pretrain(shop_config(folder, recipe, *own), folder / name)
    llm = [
        f'llm.name={write_llm(folder / "llm")}',
        'llm.num_layers=null',
        f'llm.tables.graph={folder / "graph"}',
        f'llm.tables.seq={folder / "seq"}',
        'llm.prefix.rank=2',
        'train.precision=fp32',
    ]
    experiment.finetune(shop_config(folder, 'finetune_best', *llm), folder / 'hellm')
    return folder


@pytest.fixture(scope='module')
def combined(shop: Path) -> Path:
    experiment.ensemble(ensemble_config(shop), shop / 'all')
    return shop / 'all'


def scores(run: experiment.Run) -> torch.Tensor:
    """Of all users, after a history of two items, and of a stranger."""
    user = torch.tensor([*range(NUM_USERS), -1])
    item = torch.arange(2 * len(user)) % NUM_ITEMS
    batch = SequenceBatch(user, item, torch.arange(len(user)).repeat_interleave(2))
    with torch.no_grad():
        return run.model.score(run.model.encode(run.data), batch)


def test_run_folder_of_an_ensemble(shop: Path, combined: Path) -> None:
    found = checkpoint.load_json(combined / 'metrics.json')
    run = experiment.load_run(combined)
    assert isinstance(run.model, Ensemble)
    assert run.model.weights == found['weights']
    assert list(found['weights']) == list(found['members']) == list(MEMBERS)
    assert found['weights']['hellm'] == 1
    again = evaluate(run.model, run.data, 'val', max_len=8)
    assert found['metrics'] == pytest.approx(again.metrics)
    for name in MEMBERS:
        own = checkpoint.load_json(shop / name / 'metrics.json')
        member = found['members'][name]
        assert member['metrics'] == pytest.approx(own['metrics'])
        assert member['seconds'] == own['seconds']
        assert member['parameters'] == own.get('parameters', 0)
    trained = [m['trained_parameters'] for m in found['members'].values()]
    assert found['settings']['trained_parameters'] == sum(trained)
    assert 0 < sum(trained) < found['parameters']
    assert len(found['tried']) == 3**3
    best = ', '.join(f'{name}={w}' for name, w in found['weights'].items())
    assert found['tried'][best] == found['metrics']['N@10']
    assert found['metrics']['N@10'] == max(found['tried'].values())
    assert found['settings']['data'] == run.data.fingerprint


def test_what_is_not_needed_is_not_copied(combined: Path) -> None:
    for name, models in (('graph', {'model.safetensors'}), ('hellm', {'model'})):
        files = {path.name for path in (combined / 'members' / name).iterdir()}
        assert files == {'config.yaml', 'ids.json', 'metrics.json', *models}


def test_a_moved_folder_needs_no_original(
    shop: Path, combined: Path, tmp_path: Path
) -> None:
    first = experiment.load_run(combined)
    test = experiment.evaluate_run(combined).rank
    away, elsewhere = tmp_path / 'away', tmp_path / 'elsewhere'
    away.mkdir()
    shutil.copytree(combined, elsewhere)
    for name in MEMBERS:
        shutil.move(shop / name, away / name)
    try:
        second = experiment.load_run(elsewhere)
        assert torch.equal(scores(first), scores(second))
        assert torch.equal(experiment.evaluate_run(elsewhere).rank, test)
        code = (
            'import sys, torch\n'
            'from hellm_pyg import experiment\n'
            'from tests.test_run_folder import scores\n'
            'torch.save(scores(experiment.load_run(sys.argv[1])), sys.argv[2])\n'
        )
        path = tmp_path / 'scores.pt'
        arguments = [sys.executable, '-c', code, str(elsewhere), str(path)]
        subprocess.run(arguments, cwd=ROOT, check=True)
        torch.testing.assert_close(
            torch.load(path), scores(first), atol=1e-6, rtol=1e-6
        )
    finally:
        for name in MEMBERS:
            shutil.move(away / name, shop / name)


def test_recommends_to_known_users_and_to_new_ones(
    combined: Path, tmp_path: Path
) -> None:
    run = experiment.load_run(combined)
    model, data, ids = run.model, run.data, run.ids
    rows = recommend(model, data, ids, ['u01'], [['p001', 'p004']], k=3, max_len=8)
    assert [row.user for row in rows] == ['u01'] * 3 + [None] * 3
    assert not {'p001', 'p004'} & {row.item for row in rows[3:]}
    path = tmp_path / 'top.csv'
    assert export_top_n(model, data, ids, path, k=3, max_len=8) == 3 * NUM_USERS
    lines = path.read_text().splitlines()
    assert lines[4].split(',')[0] == 'u01'
    written = [line.split(',')[2] for line in lines if line.startswith('u01,')]
    assert written == [row.item for row in rows[:3]]


def test_the_same_call_changes_nothing_and_another_one_is_refused(
    shop: Path, combined: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in combined.rglob('*.json')}
    with caplog.at_level(logging.INFO):
        metrics = experiment.ensemble(ensemble_config(shop), combined)
    assert 'finished before, nothing is done' in caplog.text
    assert 'trained anew' not in caplog.text
    assert metrics == checkpoint.load_json(combined / 'metrics.json')['metrics']
    turned = ensemble_config(shop, members=tuple(reversed(MEMBERS)))
    for config, key in (
        (ensemble_config(shop, 'ensemble.grid=[0, 1]'), 'ensemble.grid'),
        (ensemble_config(shop, members=MEMBERS[:2]), 'ensemble.members'),
        (turned, 'ensemble.members'),  # another member would have weight 1
        # Nothing tells whether it is the same file.
        (ensemble_config(shop, f'data.interactions={shop}/x'), 'data.interactions'),
    ):
        with pytest.raises(ValueError, match=f"another configuration: '{key}' is"):
            experiment.ensemble(config, combined)
    with pytest.raises(ValueError, match='holds a run of another configuration'):
        experiment.ensemble(ensemble_config(shop), shop / 'graph')
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_members_that_were_trained_anew_are_said(
    shop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(shop / 'seq', tmp_path / 'seq')
    config = ensemble_config(
        shop, f'ensemble.members={{seq: {tmp_path / "seq"}, floor: {shop / "floor"}}}'
    )
    first = experiment.ensemble(config, tmp_path / 'run')
    metrics = checkpoint.load_json(tmp_path / 'seq' / 'metrics.json')
    checkpoint.save_json(tmp_path / 'seq' / 'metrics.json', {**metrics, 'seconds': 9.0})
    assert experiment.ensemble(config, tmp_path / 'run') == first
    assert "'seq' has been trained anew since" in caplog.text
    assert "'floor' has been trained" not in caplog.text


@pytest.mark.parametrize('victim', ['copyfile', 'save_json'])
def test_a_kill_leaves_nothing_that_looks_finished(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    calls = []

    def killed(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2 or victim == 'save_json':
            raise KeyboardInterrupt

    module = shutil if victim == 'copyfile' else checkpoint
    config = ensemble_config(shop, members=('seq', 'floor'))
    with monkeypatch.context() as patch:
        patch.setattr(module, victim, killed)
        with pytest.raises(KeyboardInterrupt):
            experiment.ensemble(config, tmp_path)
    assert not (tmp_path / 'metrics.json').exists()
    assert (tmp_path / 'members').exists() == (victim == 'save_json')
    with pytest.raises(ValueError, match='not trained to its end'):
        experiment.load_run(tmp_path)
    # Even another call may use the folder.
    other = ensemble_config(shop, members=('graph',))
    experiment.ensemble(other, tmp_path)
    assert [path.name for path in (tmp_path / 'members').iterdir()] == ['graph']


def test_folders_that_are_no_members(
    shop: Path, combined: Path, tmp_path: Path
) -> None:
    def refused(override: str, message: str, *more: str) -> None:
        config = ensemble_config(shop, override, *more, members=('seq',))
        with pytest.raises(ValueError, match=message):
            experiment.ensemble(config, tmp_path / 'run')
        assert not (tmp_path / 'run').exists()

    refused('ensemble.members={}', r"'ensemble.members' needs a run .*\(got none\)")
    refused(
        f'ensemble.members.x={tmp_path}',
        r"'ensemble.members.x' needs to be the folder of a run .*'config\.yaml'",
    )
    refused(
        f'ensemble.members.x={combined}',
        r"'ensemble.members.x' needs .* no ensemble itself .*hellm, graph, seq, floor",
    )
    refused(
        f'ensemble.members={{../x: {shop / "seq"}}}',
        r"'ensemble.members' needs names of letters.*\(got '../x'\)",
    )
    shutil.copytree(shop / 'graph', tmp_path / 'near')
    path = tmp_path / 'near' / 'config.yaml'
    path.write_text(path.read_text().replace('knn: 4\n', 'knn: 3\n'))
    refused(
        f'ensemble.members.graph={shop / "graph"}',
        r"members.near' cannot be taken: .*'data.knn' 3 \(got 4 ",
        f'ensemble.members.near={path.parent}',
    )
    refused(
        f'ensemble.members.graph={shop / "graph"}',
        r"members.graph' cannot be taken: .*'data.features' \['text'\] \(got \[\]",
        'data.features={}',
    )
    refused(
        'train.max_len=7',
        r"members.seq' cannot be taken: .* of 8 items \(got 'train.max_len' 7 ",
    )
    refused('train.split=all', r"'train.refit' needs .* ensemble.*'train.split' 'all'")
    shutil.copytree(shop / 'seq', tmp_path / 'leak')
    path = tmp_path / 'leak' / 'config.yaml'
    path.write_text(path.read_text().replace('split: train\n', 'split: train+val\n'))
    message = r"x' cannot .*'train.split' 'train\+val' \(got 'train' here\)"
    refused(f'ensemble.members.x={path.parent}', message)
    shutil.copytree(shop / 'floor', tmp_path / 'half')
    (tmp_path / 'half' / 'metrics.json').unlink()
    refused(f'ensemble.members.x={tmp_path / "half"}', "'ensemble.members.x'.*finished")


def test_neighbours_are_those_of_the_members(shop: Path, tmp_path: Path) -> None:
    members = ('seq', 'graph')
    first = experiment.ensemble(
        ensemble_config(shop, members=members), tmp_path / 'first'
    )
    other = ensemble_config(shop, 'data.knn=3', members=members)
    assert experiment.ensemble(other, tmp_path / 'other') == first
    assert load_config(tmp_path / 'other' / 'config.yaml').data.knn == 4
    assert experiment.ensemble(other, tmp_path / 'other') == first
    # SASRec has learned from them, if at all, and reads them no more.
    shutil.copytree(shop / 'seq', tmp_path / 'near')
    path = tmp_path / 'near' / 'config.yaml'
    path.write_text(path.read_text().replace('knn: 4\n', 'knn: 3\n'))
    mixed = f'ensemble.members={{seq: {path.parent}, graph: {shop / "graph"}}}'
    config = ensemble_config(shop, mixed, members=())
    assert experiment.ensemble(config, tmp_path / 'mixed') == first
    assert load_config(tmp_path / 'mixed' / 'config.yaml').data.knn == 4


def test_member_of_another_catalogue_is_named(shop: Path, tmp_path: Path) -> None:
    (tmp_path / 'other').mkdir()
    log = tmp_path / 'other' / 'log.csv'
    overrides = write_shop(tmp_path / 'other')
    log.write_text(log.read_text().replace('p003', 'q003'))
    items = tmp_path / 'other' / 'items.csv'
    items.write_text(items.read_text().replace('p003', 'q003'))
    config = load_config('sasrec', [*overrides, 'model.name=Popularity'])
    experiment.pretrain(config, tmp_path / 'run')
    config = ensemble_config(shop, f'ensemble.members.new={tmp_path / "run"}')
    with pytest.raises(
        ValueError, match=r"'ensemble.members.new' cannot be .* trained on other data"
    ):
        experiment.ensemble(config, tmp_path / 'all')


def test_scores_of_a_member_that_are_nan_name_it(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / 'seq', tmp_path / 'sick')
    path = tmp_path / 'sick' / 'model.safetensors'
    state = checkpoint.load_tensors(path)
    state['item_embedding.weight'][3] = float('nan')
    checkpoint.save_tensors(path, state)
    config = ensemble_config(
        shop, f'ensemble.members.sick={tmp_path / "sick"}', members=('graph',)
    )
    with pytest.raises(ValueError, match="'sick' needs finite scores"):
        experiment.ensemble(config, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'metrics.json').exists()


def test_damaged_folders_of_an_ensemble(combined: Path, tmp_path: Path) -> None:
    run = tmp_path / 'run'
    shutil.copytree(combined, run)
    path = run / 'metrics.json'
    metrics = json.loads(path.read_text())
    for change, message in (
        ({'weights': {'hellm': 1.0}}, r"lacks 'weights.graph', 'weights.seq'"),
        ({'weights': {**metrics['weights'], 'seq': '1'}}, r"'weights.seq' needs to be"),
        ({'weights': 1}, r"'weights' needs to be"),
    ):
        path.write_text(json.dumps({**metrics, **change}))
        with pytest.raises(ValueError, match=message):
            experiment.load_run(run)
    path.write_text(json.dumps(metrics))
    shutil.rmtree(run / 'members' / 'seq')
    with pytest.raises(
        ValueError, match=r"'ensemble.members.seq' needs to be the fold"
    ):
        experiment.load_run(run)


def test_sections_exclude_each_other(shop: Path, tmp_path: Path) -> None:
    for train, recipe, *more in (
        (experiment.ensemble, 'sasrec'),
        (experiment.ensemble, 'ensemble', 'model.name=SASRec'),
        (experiment.pretrain, 'ensemble'),
        (experiment.finetune, 'ensemble'),
        (experiment.finetune, 'finetune_best', 'ensemble.grid=[1]'),
    ):
        with pytest.raises(ValueError, match=f"'{train.__name__}' needs a recipe with"):
            train(shop_config(shop, recipe, *more), tmp_path / 'run')


def test_changed_members(tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ('same', 'new', 'gone')}
    for name, now in (('same', 'a'), ('new', 'b')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'metrics.json').write_text(now)
    for name in folders:
        copy = tmp_path / 'run' / 'members' / name
        copy.mkdir(parents=True)
        (copy / 'metrics.json').write_text('a')
    assert run_folder.changed_members(folders, tmp_path / 'run') == ['new']


def test_members_of_other_interactions_are_refused(shop: Path, tmp_path: Path) -> None:
    files = write_shop(tmp_path)
    turn_around(tmp_path)
    for name, own in (('seq', SMALL), ('floor', ['model.name=Popularity'])):
        config = load_config('sasrec', [*files, *own])
        experiment.pretrain(config, tmp_path / name)
        folders = [f'ensemble.members.other={tmp_path / name}']
        config = ensemble_config(shop, *folders, members=('graph',))
        message = (
            r"members.other' cannot be taken: .* on other interactions of the same"
        )
        with pytest.raises(ValueError, match=message):
            experiment.ensemble(config, tmp_path / 'run')
        assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('max_len', [7, 9])
@pytest.mark.parametrize('name', ['GRU4Rec', 'ItemKNN'])
def test_members_read_what_they_have_read_alone(
    shop: Path, tmp_path: Path, name: str, max_len: int
) -> None:
    recipe = 'gru4rec' if name == 'GRU4Rec' else 'sasrec'
    own = [f'train.max_len={max_len}', f'model.name={name}']
    experiment.pretrain(shop_config(shop, recipe, *own), tmp_path / 'other')
    config = ensemble_config(
        shop, f'ensemble.members.other={tmp_path / "other"}', members=('graph',)
    )
    message = rf"other' cannot be .* of {max_len} items \(got 'train.max_len' 8 here"
    with pytest.raises(ValueError, match=message):
        experiment.ensemble(config, tmp_path / 'run')


def test_a_model_need_not_tell_what_it_is_trained_on(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = experiment.evaluate_run(shop / 'seq', 'val', []).rank
    monkeypatch.delattr(SequenceRecommender, 'sampling')
    monkeypatch.delattr(GraphRecommender, 'sampling')
    assert torch.equal(experiment.evaluate_run(shop / 'seq', 'val', []).rank, expected)


def test_a_table_that_smoothing_alone_reads_may_not_move(tmp_path: Path) -> None:
    (tmp_path / 'state').mkdir()

    def config(folder: str, *overrides: str) -> Config:
        tables = f'llm.tables={{graph: {tmp_path / folder}, seq: random:4}}'
        return load_config('finetune_best', [tables, *overrides])

    alone = ['llm.token=[seq]', 'llm.prefix=null']
    for own, moves in (
        ([], True),
        ([*alone, 'llm.smoothing=null'], True),
        ([*alone, 'llm.smoothing.embedding=graph'], False),
    ):
        save_config(config('there', *own), tmp_path / 'config.yaml')
        now = config('here', *own)
        with pytest.raises(ValueError, match=r"'llm.tables.graph' is '.*there'"):
            check_config(tmp_path, now, moved=not moves)
        if moves:
            assert check_config(tmp_path, now, moved=True)


def test_an_empty_section_is_not_null() -> None:
    pair = [
        load_config('finetune_best', [f'llm.prefix={value}'])
        for value in ('{}', 'null')
    ]
    assert 'llm.prefix' in differing(*pair)
    assert differing(pair[0], pair[0]) == {}
