from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
import yaml

from benchmarks import child
from benchmarks.search import __main__ as command
from benchmarks.search import space as spaces
from benchmarks.search import trial
from benchmarks.search.space import (
    Space,
    assignments,
    load_space,
    own_point,
    write_recipe,
)
from benchmarks.search.study import Budget, Search
from benchmarks.search.trial import Outcome, train
from hellm_pyg import allocator, experiment
from hellm_pyg.config import load_config, recipes, save_config, to_dict
from tests.shop import write_shop

ROOT = Path(__file__).parents[2]
SPACES = sorted((ROOT / 'benchmarks' / 'search').glob('*.yaml'))
GRID = {'train.lr': [1e-4, 1e-3, 1e-2, 1e-1], 'model.num_layers': [1, 2, 3]}
SPACE = Space('lightgcn', 'lightgcn', GRID, [])


@pytest.mark.parametrize('path', SPACES, ids=lambda path: path.stem)
def test_spaces_fit_their_recipes(path: Path) -> None:
    space = load_space(path)
    assert path.stem in recipes()
    assert 'train.lr' in space.values
    for dataset in spaces.datasets(space.recipe):
        for key, values in space.values.items():
            for value in values:
                overrides = [f'dataset={dataset}', *assignments({key: value})]
                load_config(space.recipe, overrides)
    assert not {'train.seed', 'train.max_len', 'eval.mask'} & set(space.values)


def test_every_trained_model_has_a_space() -> None:
    named = {load_config(path.stem).model['name'] for path in SPACES}
    trained = {load_config(name).model.get('name') for name in recipes()} - {None}
    assert named == trained


@pytest.mark.parametrize(
    ('raw', 'message'),
    [
        ({'spaces': {}}, r"needs to hold \['overrides', 'recipe', 'space'\]"),
        ({'space': {'train.lr': [0.5]}}, r"'train.lr' needs to list 0.003.*sasrec"),
        ({'space': {'model.colour': [1]}}, r"'model.colour' is not a key of 'sasrec'"),
    ],
)
def test_bad_spaces(tmp_path: Path, raw: dict, message: str) -> None:
    path = tmp_path / 'sasrec.yaml'
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=message):
        load_space(path)


def test_a_space_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / 'nope.yaml'
    with pytest.raises(ValueError, match='is no space that can be read'):
        load_space(path)
    path.write_text('space: [')
    with pytest.raises(ValueError, match='is no space that can be read'):
        load_space(path)
    assert command.main([str(path)]) == 2
    assert 'is no space that can be read' in capsys.readouterr().err


class Trainings:
    """Stands in for training: a made-up curve of any point, in no time."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[tuple[list[str], Path]] = []
        self.stop_at = stop_at

    def __call__(
        self,
        recipe: str,
        overrides: list[str],
        run_dir: Path,
        minutes: float,
        prune: Callable[[int, float], bool],
    ) -> Outcome:
        if len(self.seen) == self.stop_at:
            self.stop_at = None
            raise KeyboardInterrupt
        self.seen.append((overrides, run_dir))
        config = load_config(recipe, overrides)
        if config.train.lr == 0.1:
            return Outcome('failed', [], 'the loss is nan')
        good = config.model['num_layers'] + (config.train.lr == 0.01)
        curve: list[dict[str, float]] = []
        for epoch in range(1, 6):
            value = good * (1 - 2**-epoch)
            curve.append({'epoch': epoch, 'seconds': 2.0 * epoch, 'N@10': value})
            if prune(epoch, value):
                return Outcome('pruned', curve)
        return Outcome('complete', curve)


def search(folder: Path, train: Any, trials: int = 12, **kwargs: Any) -> Search:
    return Search(SPACE, 'beauty', Budget(trials, 5), folder, train=train, **kwargs)


def test_search_begins_with_the_recipe_and_tries_no_point_twice(tmp_path: Path) -> None:
    trainings = Trainings()
    found = search(tmp_path, trainings)
    found.run()
    points = [tuple(overrides[-2:]) for overrides, _ in trainings.seen]
    assert points[0] == ('train.lr=0.001', 'model.num_layers=3')
    assert len(set(points)) == len(points) == 12  # all there are
    assert found.best == {'train.lr': 0.01, 'model.num_layers': 3}
    record = found.to_dict()
    assert record['best']['N@10'] == pytest.approx(4 * (1 - 1 / 32))
    states = [run['state'] for run in record['runs']]
    assert states.count('failed') == 3
    assert 'pruned' in states
    short = [run for run in record['runs'] if run['state'] == 'pruned']
    assert all(3 <= run['epochs'] < 5 for run in short)
    assert (record['trials'], record['minutes']) == (12, 5)
    said: list[str] = []
    search(tmp_path, trainings, 20).run(said.append)
    assert len(trainings.seen) == 12
    assert said == ['lightgcn: all of its points are tried']


@pytest.mark.parametrize('stop_at', [0, 1, 5])
def test_stopped_search_goes_on_as_if_it_had_not_been(
    tmp_path: Path, stop_at: int
) -> None:
    whole, parts = Trainings(), Trainings(stop_at)
    search(tmp_path / 'whole', whole, 8).run()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / 'parts', parts, 8).run()
    again = search(tmp_path / 'parts', parts, 8)
    again.run()
    assert [name for name, _ in parts.seen] == [name for name, _ in whole.seen]
    # The same folder, so that the training goes on, too.
    assert [p.name for _, p in parts.seen] == [p.name for _, p in whole.seen]
    assert again.to_dict() == search(tmp_path / 'whole', whole, 8).to_dict()


@pytest.mark.parametrize('known', [1, 5])
def test_search_goes_on_from_its_record(tmp_path: Path, known: int) -> None:
    whole, parts = Trainings(), Trainings()
    search(tmp_path / 'whole', whole, 8).run()
    begun = search(tmp_path / 'begun', parts, known)
    begun.run()
    record = json.loads(json.dumps(begun.to_dict()))
    again = search(tmp_path / 'again', parts, 8, record=record)
    again.run()
    assert [name for name, _ in parts.seen] == [name for name, _ in whole.seen]
    assert again.to_dict() == search(tmp_path / 'whole', whole, 8).to_dict()
    del record['config']['model']['num_layers']  # which the class has as its default
    search(tmp_path / 'older', parts, 8, record=record)
    record['config']['train']['lr'] = 0.5  # where a recipe that has changed started
    search(tmp_path / 'moved', parts, 8, record=record)
    with pytest.raises(ValueError, match=r"record of 'lightgcn'.* another 'minutes'"):
        Search(SPACE, 'beauty', Budget(8, 7), tmp_path / 'other', record=record)


@pytest.mark.parametrize('end', ['set_user_attr', 'tell'])
def test_kill_while_an_outcome_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    whole, parts = Trainings(), Trainings()
    search(tmp_path / 'whole', whole, 3).run()
    with monkeypatch.context() as patch:
        owner = optuna.Trial if end == 'set_user_attr' else optuna.Study
        patch.setattr(owner, end, Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / 'parts', parts, 3).run()
    again = search(tmp_path / 'parts', parts, 3)
    again.run()
    assert again.to_dict() == search(tmp_path / 'whole', whole, 3).to_dict()
    assert len(parts.seen) == 3 + (end == 'set_user_attr')


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    search(tmp_path, Trainings(), 1).run()
    with pytest.raises(ValueError, match="holds a search with another 'minutes'"):
        Search(SPACE, 'beauty', Budget(1, 7), tmp_path, train=Trainings())
    with pytest.raises(ValueError, match="holds a search with another 'config'"):
        search(tmp_path, Trainings(), overrides=['model.lambda_reg=0.5'])


def test_a_search_that_began_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    begun = search(tmp_path, Trainings(), 1)
    task = begun.study.user_attrs['task']
    del task['config']['train']['refit']
    begun.study.set_user_attr('task', task)
    later = search(tmp_path, Trainings(), 1)
    later.run()
    assert len(later.to_dict()['runs']) == 1


def test_search_without_a_completed_trial(tmp_path: Path) -> None:
    def fail(*arguments: Any) -> Outcome:
        return Outcome('failed', [], 'exit status 1')

    found = search(tmp_path, fail, 2)
    found.run()
    with pytest.raises(ValueError, match=r'lightgcn, beauty: no trial was completed'):
        _ = found.best


def test_written_recipe_is_complete(tmp_path: Path) -> None:
    path = tmp_path / 'found.yaml'
    values = {'train.lr': 1e-5, 'data.knn': 20, 'model.alpha': 0.5}
    space = Space('found', 'pretrain_best', {key: [] for key in values}, [])
    points = {'beauty': values, 'toys': {**values, 'train.lr': 3e-5}}
    write_recipe(path, space, points, 'How.\n\n  it was found')
    assert path.read_text().startswith('# How.\n#\n#   it was found\ndata:\n')
    for dataset in ('beauty', 'toys', 'sports'):
        point = points.get(dataset, values)
        overrides = [f'dataset={dataset}', *assignments(point)]
        wanted = load_config('pretrain_best', overrides)
        assert load_config(path, [f'dataset={dataset}']) == wanted
        assert own_point(space._replace(recipe=str(path)), overrides[:1]) == point
    raw = yaml.safe_load(path.read_text())
    assert set(raw) == {*to_dict(load_config('pretrain_best')), 'datasets'}
    assert set(raw['train']) == set(to_dict(load_config())['train'])


@pytest.mark.parametrize(
    ('rate', 'rates'),
    [(1e-3, [3e-4, 1e-3, 3e-3]), (3e-3, [1e-3, 3e-3, 9e-3]), (0.1, [0.03, 0.1, 0.3])],
)
def test_rates_of_the_carried_winner(rate: float, rates: list[float]) -> None:
    assert command.learning_rates(rate) == rates


def shop_space(folder: Path, **changes: object) -> Path:
    """A space over a recipe of a small shop with three data sets."""
    own = ['model.embedding_dim=8', 'model.num_layers=2', 'train.lr=0.001']
    config = load_config('sasrec', [*write_shop(folder), *own])
    recipe = folder / 'recipe.yaml'
    save_config(config, recipe)
    with recipe.open('a') as file:
        file.write('datasets: {beauty: {}, toys: {}, sports: {}}\n')
    raw = {
        'recipe': str(recipe),
        'space': {'train.lr': [0.001, 0.01], 'model.num_layers': [1, 2]},
        'overrides': ['train.epochs=3'],
    }
    path = folder / 'small.yaml'
    path.write_text(yaml.safe_dump({**raw, **changes}))
    return path


def arguments(folder: Path, *more: str) -> list[str]:
    outputs = [f'--{name}={folder / name}' for name in ('runs', 'recipes', 'results')]
    return [str(folder / 'small.yaml'), *outputs, *more]


def change_the_test_items(folder: Path) -> None:
    """Another last item for every user; the catalogue stays."""
    log = folder / 'log.csv'
    head, *rows = [line.split(',') for line in log.read_text().splitlines()]
    last: dict[str, list[str]] = {}
    for row in rows:
        if row[0] not in last or int(row[2]) > int(last[row[0]][2]):
            last[row[0]] = row
    for user, row in last.items():
        taken = {other[1] for other in rows if other[0] == user}
        row[1] = min({f'p{i:03d}' for i in range(24)} - taken)
    log.write_text('\n'.join(','.join(row) for row in [head, *rows]) + '\n')


def test_search_from_the_command_line_does_not_know_the_test_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(module: str, arguments: Sequence[str]) -> Any:
        monkeypatch.setattr(sys, 'argv', [module, *arguments])
        trial.main()  # in this process, which has imported what it needs
        return Mock(poll=lambda: 0)

    monkeypatch.setattr(child, 'start', start)
    monkeypatch.setattr(child, 'follow_parent', lambda: None)
    monkeypatch.setattr(allocator, 'keep_freed_memory', lambda: None)
    found = []
    for name in ('one', 'other'):
        folder = tmp_path / name
        folder.mkdir()
        shop_space(folder)
        if name == 'other':
            change_the_test_items(folder)
        assert command.main(arguments(folder, '--trials=1', '--carry')) == 0
        found.append(json.loads((folder / 'results' / 'small.json').read_text()))
        for run in found[-1]['runs']:
            for record in run['curve']:
                del record['seconds']
            del run['seconds']
        del found[-1]['recipe'], found[-1]['config']
    assert found[0] == found[1]
    assert [run['epochs'] for run in found[0]['runs']] == [3]
    # The test items differ, and with them what is measured on them.
    measured = []
    for name in ('one', 'other'):
        recipe = tmp_path / name / 'recipes' / 'small.yaml'
        config = load_config(recipe, ['train.epochs=1'])
        experiment.pretrain(config, tmp_path / name / 'run')
        result = experiment.evaluate_run(tmp_path / name / 'run')
        measured.append(result.rank.tolist())
    assert measured[0] != measured[1]


def test_carried_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop_space(tmp_path)
    folders, minutes = [], []

    def quick(recipe: str, overrides: list[str], run_dir: Path, *rest: Any) -> Outcome:
        folders.append(run_dir.parts[-3])
        minutes.append(rest[0])
        config = load_config(recipe, overrides)
        value = 0.5 - abs(config.train.lr - 0.03) - 0.1 * config.model['num_layers']
        curve = [{'epoch': 1, 'seconds': 1.0, 'N@10': value}]
        return Outcome('time is up', curve)

    class Quick(Search):
        def __init__(self, *positional: Any, **named: Any) -> None:
            super().__init__(*positional, train=quick, **named)

    monkeypatch.setattr(command, 'Search', Quick)
    everything = arguments(tmp_path, '--trials=4', '--carry', 'toys=9')
    assert command.main(everything) == 0
    assert folders == ['beauty'] * 4 + ['toys'] * 3
    assert minutes == [3.0] * 4 + [9.0] * 3
    recipe = tmp_path / 'recipes' / 'small.yaml'
    beauty, toys = (load_config(recipe, [f'dataset={d}']) for d in ('beauty', 'toys'))
    assert (beauty.train.lr, toys.train.lr) == (0.01, 0.03)
    assert beauty.model == toys.model
    assert beauty.train.eval_every == load_config('sasrec').train.eval_every
    assert '4 trials' in recipe.read_text()
    results = json.loads((tmp_path / 'results' / 'small.json').read_text())
    assert results['carried']['toys']['best']['values'] == {'train.lr': 0.03}
    assert command.main(everything) == 0
    assert len(folders) == 7
    shutil.rmtree(tmp_path / 'runs')  # a new machine has the committed results alone
    assert command.main([*everything, 'sports=9']) == 0
    assert folders[7:] == ['sports'] * 3
    again = json.loads((tmp_path / 'results' / 'small.json').read_text())
    assert again['carried'].pop('sports')
    assert again.pop('command').endswith(' --carry toys=9 sports=9')
    assert results.pop('command').endswith(' --minutes 3 --carry toys=9')
    assert again == results
    assert command.main(arguments(tmp_path, '--minutes=6')) == 1
    assert len(folders) == 10


@pytest.mark.parametrize('text', ['toys=', 'toys=soon', 'toys=0', 'toys=nan'])
def test_minutes_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    shop_space(tmp_path)
    assert command.main(arguments(tmp_path, '--carry', text)) == 2
    error = capsys.readouterr().err
    assert "'--carry' needs names of data sets" in error
    assert f'(got {text!r})' in error
    assert not (tmp_path / 'runs').exists()


def test_limits_of_a_trial(tmp_path: Path) -> None:
    overrides = [*write_shop(tmp_path), 'model.embedding_dim=8', 'train.epochs=500']
    overrides += ['train.patience=500', 'train.metric=N@10']
    told: list[int] = []

    def never(epoch: int, value: float) -> bool:
        told.append(epoch)
        return False

    late = train('sasrec', overrides, tmp_path / 'late', 1e-6, never)
    assert (late.state, told) == ('time is up', [1])
    pruned = train('sasrec', overrides, tmp_path / 'p', 9, lambda epoch, _: epoch == 3)
    assert pruned.state == 'pruned'
    assert [record['epoch'] for record in pruned.curve] == [1, 2, 3]
    assert pruned.value == max(record['N@10'] for record in pruned.curve)
    wrong = [*overrides, 'model.num_heads=3']
    failed = train('sasrec', wrong, tmp_path / 'wrong', 9, never)
    assert (failed.state, failed.error) == ('failed', 'exit status 1')


def test_killed_search_goes_on(tmp_path: Path) -> None:
    shop_space(tmp_path, overrides=['train.epochs=30', 'train.patience=30'])
    call = [sys.executable, '-m', 'benchmarks.search']
    call += arguments(tmp_path, '--trials=1', '--carry')
    runs = tmp_path / 'runs' / 'beauty' / 'small'
    first = subprocess.Popen(call, cwd=ROOT)
    end = time.monotonic() + 120
    while not any('"metrics"' in p.read_text() for p in runs.glob('*/log.jsonl')):
        assert time.monotonic() < end
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (log,) = runs.glob('*/log.jsonl')
    size = -1
    while size != (size := log.stat().st_size):  # the orphan saves and stops
        time.sleep(1)
    subprocess.run(call, cwd=ROOT, check=True)
    found = json.loads((tmp_path / 'results' / 'small.json').read_text())
    assert [run['epochs'] for run in found['runs']] == [30]
    assert not list(runs.glob('*/log.jsonl'))
