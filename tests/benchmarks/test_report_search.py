import json
from pathlib import Path

import pytest

from benchmarks.report.__main__ import main
from benchmarks.report.search import budgets, load_searches, trials
from benchmarks.search.space import Space
from benchmarks.search.study import Budget
from benchmarks.search.study import Search as Study
from benchmarks.search.trial import Outcome
from tests.benchmarks.fabricate import search, trial

SPACE = {'train.lr': [0.001, 0.003], 'model.num_layers': [1, 2, 3]}
RUNS = [
    trial({'train.lr': 0.001, 'model.num_layers': 1}, 'complete', 0.031),
    trial({'train.lr': 0.003, 'model.num_layers': 1}, 'pruned', 0.040),
    trial({'train.lr': 0.003, 'model.num_layers': 3}, 'time is up', 0.035),
    trial({'train.lr': 0.001, 'model.num_layers': 2}, 'failed', None, 'exit status 1'),
]
CARRIED = [
    trial({'train.lr': 0.003}, 'complete', 0.02),
    trial({'train.lr': 0.01}, 'complete', 0.03),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / 'search'
    folder.mkdir()
    rates = {'train.lr': [0.001, 0.003, 0.01]}
    content = search('beauty', RUNS, SPACE, 2)
    content['carried'] = {'toys': search('toys', CARRIED, rates, 1)}
    (folder / 'vbpr.json').write_text(json.dumps(content))
    return folder


def test_budgets(folder: Path) -> None:
    shown = budgets(load_searches(folder))
    rows = [[cell.text for cell in row] for row in shown.rows]
    assert rows == [
        [
            'vbpr',
            'beauty',
            '5 trials of 5 min',
            '1 complete, 1 pruned, 1 time is up, 1 failed',
            '4.2 min',
            '4 of 6',
            '0.0350',
            'train.lr=0.003, model.num_layers=3',
        ],
        [
            'vbpr',
            'toys, from beauty',
            '3 trials of 5 min',
            '2 complete',
            '2.8 min',
            '2 of 3',
            '0.0300',
            'train.lr=0.01',
        ],
    ]


def test_budgets_are_compared(folder: Path) -> None:
    (one, other) = load_searches(folder)
    assert 'budget' not in budgets([one, other]).caption  # one a data set
    same = one._replace(name='sasrec')
    told = ' On each data set the searched recipes were given the same budget.'
    assert told in budgets([one, same, other]).caption
    longer = one._replace(name='bm3', minutes=15)
    caption = budgets([one, longer, same, other]).caption
    assert told not in caption
    assert (
        ' Budgets differ on beauty (vbpr, sasrec: 5 trials of 5 min; bm3: 5 trials of '
        '15 min).'
    ) in caption


def test_borrowed_settings_are_told(folder: Path) -> None:
    one = load_searches(folder)[0]
    found = [one, one._replace(name='sasrec')]
    caption = budgets(found, ['bm3', 'freedom'], ['sasrec_best']).caption
    assert 'the searched recipes were given the same budget.' in caption
    assert ' with the settings of others: bm3, freedom.' in caption
    assert ' Not searched, of settings by hand: sasrec_best.' in caption
    longer = one._replace(name='lattice', minutes=15)
    assert 'Budgets differ on beauty' in budgets([*found, longer], ['bm3']).caption


def test_short_trials_are_told(folder: Path) -> None:
    one = load_searches(folder)[0]
    assert 'learn fast' not in budgets([one]).caption
    late = [trial._replace(state='time is up') for trial in one.tried[:3]]
    caption = budgets([one._replace(tried=[*late, one.tried[3]])]).caption
    assert 'short trials and pruning favour settings that learn fast.' in caption


def test_trials_that_were_still_rising_are_told(folder: Path) -> None:
    one = load_searches(folder)[0]
    ended = [trial for trial in one.tried if trial.state != 'pruned']
    flat = [trial._replace(best_epoch=1, epochs=2) for trial in ended]
    assert 'best at their end' not in budgets([one._replace(tried=flat)]).caption
    rising = [flat[0]._replace(best_epoch=2), *flat[1:]]
    told = f' Of {len(flat)} that were not pruned 1 were best at their end.'
    assert told in budgets([one._replace(tried=rising)]).caption


def test_trials(folder: Path) -> None:
    first, carried = map(trials, load_searches(folder))
    assert (first.title, carried.title) == ('vbpr, beauty', 'vbpr, toys')
    assert first.columns[1:3] == list(SPACE)
    rows = [[cell.text for cell in row] for row in first.rows]
    assert rows[2] == ['3', '0.003', '3', '0.0350', '7', '1.4 min', 'time is up']
    assert rows[3][3:] == ['-', '0', '0 s', 'failed (exit status 1)']
    bold = [any(cell.best for cell in row) for row in first.rows]
    assert bold == [False, False, True, False]
    assert 'train.lr: 0.001, 0.003; model.num_layers: 1, 2, 3.' in first.caption
    assert 'seed 0' in first.caption
    assert 'with the winner on beauty' in carried.caption
    assert 'with the winner on' not in first.caption


def test_notes_stand_before_the_budgets(folder: Path) -> None:
    (folder / 'NOTES.md').write_text('Not **idle**.\n')
    assert main([str(folder)]) == 0
    for form, note in (('md', 'Not **idle**.'), ('html', 'Not <strong>idle</strong>.')):
        text = (folder / f'RESULTS.{form}').read_text()
        assert text.index(note) < text.index('5 trials of 5 min')


def test_what_a_search_writes_is_read(tmp_path: Path) -> None:
    def train(recipe: str, overrides: list[str], *rest: object) -> Outcome:
        value = 0.2 if 'model.num_layers=3' in overrides else 0.1
        return Outcome('complete', [{'epoch': 4, 'seconds': 9.0, 'N@10': value}])

    space = Space('lightgcn', 'lightgcn', {'model.num_layers': [2, 3]}, [])
    study = Study(space, 'beauty', Budget(2), tmp_path / 'study', train=train)
    study.run(say=lambda text: None)
    (tmp_path / 'lightgcn.json').write_text(json.dumps(study.to_dict()))
    (found,) = load_searches(tmp_path)
    assert (found.name, found.values) == ('lightgcn', {'model.num_layers': 3})
    tried = sorted((one.metric, one.epochs, one.seconds) for one in found.tried)
    assert tried == [(0.1, 4, 9.0), (0.2, 4, 9.0)]


def test_page_of_searches(folder: Path) -> None:
    assert main([str(folder)]) == 0
    text = (folder / 'RESULTS.md').read_text()
    assert '## vbpr, toys' in text
    assert 'no test item was read by a search' in text
    assert 'Every model gets' not in text
    assert 'Intervals and tests' not in text
    page = (folder / 'RESULTS.html').read_text()
    assert page.count('<summary>vbpr, ') == 2
    assert r'\label{tab:vbpr-toys}' in (folder / 'RESULTS.tex').read_text()


def test_other_files_are_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / 'other.json').write_text('{"dataset": "beauty", "runs": []}')
    assert main([str(folder)]) == 2
    told = capsys.readouterr().err
    assert "other.json' is no result of 'benchmarks.search'" in told


def test_folder_without_searches_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'search').mkdir()
    assert main([str(tmp_path / 'search')]) == 2
    assert "needs results of 'benchmarks.search'" in capsys.readouterr().err
    assert load_searches(tmp_path / 'none') == []
