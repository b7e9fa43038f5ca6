import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.peers import __main__ as peers
from benchmarks.peers import environments, exchange
from benchmarks.peers.lists import missed, score_lists, to_split
from benchmarks.report.cells import Result
from hellm_pyg.data.split import history_edges
from hellm_pyg.evaluation import Protocol, evaluate
from hellm_pyg.transforms import LeaveOneOut
from tests.builders import rec_data

PROTOCOLS = [
    Protocol('train+val', 'seen'),
    Protocol('train+val', 'none'),
    Protocol('train', 'train'),
    Protocol('train', 'seen'),
]


class Table:
    """Scores that are a table of users and items."""

    def __init__(self, scores):
        self.scores = scores

    def encode(self, data):
        return self.scores

    def score(self, encoded, batch):
        return encoded[batch.user]


@pytest.fixture(scope='module')
def data():
    return LeaveOneOut()(rec_data(num_users=60, num_items=50, seed=3))


@pytest.fixture(scope='module')
def table():
    generator = torch.Generator().manual_seed(7)
    return torch.rand(60, 50, generator=generator)


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize('protocol', PROTOCOLS, ids=str)
def test_whole_lists_give_the_numbers_of_scores(data, table, split, protocol):
    expected = evaluate(Table(table), data, split, (1, 5, 10), protocol)
    lists = table.argsort(dim=1, descending=True)
    result = score_lists(data, lists, split, protocol, (1, 5, 10))
    assert torch.equal(result.user, expected.user)
    assert torch.equal(result.rank, expected.rank)
    assert result.metrics == expected.metrics
    assert (result.split, result.protocol) == (split, protocol)
    assert missed(result, 50) == float((expected.rank == 50).float().mean())


def test_what_a_list_lacks_is_a_miss(data, table):
    expected = evaluate(Table(table), data, 'test', (5,))
    lists = table.argsort(dim=1, descending=True)
    lists[:, 30:] = -1
    result = score_lists(data, lists, 'test', Protocol(), (5,))
    target = data['user'].test_item[result.user].unsqueeze(1)
    inside = (lists[result.user] == target).any(dim=1)
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(result.rank[inside], expected.rank[inside])
    assert (result.rank[~inside] == 50).all()
    assert missed(result, 50) == pytest.approx(float((~inside).float().mean()))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda lists: lists[:-1], 'a row for each of 60 users'),
        (lambda lists: lists[:, :0], 'a row for each of 60 users'),
        (lambda lists: lists + 1, 'items from 0 to 49'),
        (lambda lists: lists - 2, 'items from 0 to 49'),
        (lambda lists: lists.clamp(min=1), 'distinct items'),
    ],
)
def test_lists_that_do_not_fit_are_refused(data, table, change, message):
    lists = table.argsort(dim=1, descending=True)
    with pytest.raises(ValueError, match=message):
        score_lists(data, change(lists), 'test', Protocol())


def test_a_split_holds_all_but_the_test_items(data, tmp_path):
    data = data.clone()
    data['item'].x_text[4] = torch.nan
    exchange.write_split(tmp_path, to_split(data))
    split = exchange.read_split(tmp_path)
    assert (split.num_users, split.num_items) == (60, 50)
    assert np.array_equal(
        split.features['text'], data['item'].x_text.numpy(), equal_nan=True
    )
    for name, part in (('train', 'val'), ('train+val', 'test')):
        known = history_edges(data, part, 'train+val')
        user, item = split.history(name)
        assert np.array_equal(user, known.user.numpy())
        assert np.array_equal(item, known.item.numpy())
    assert split.list_length == 50
    with np.load(tmp_path / exchange.SPLIT) as file:
        assert set(file.files) == {'item', 'ptr', 'val', 'num_items', 'x_text'}


def test_lists_are_longer_than_the_longest_history():
    split = exchange.Split(
        np.arange(90), np.array([0, 20, 90]), np.array([95, -1]), 1000, {}
    )
    assert split.list_length == exchange.LENGTH + 71


def test_peers_select_by_the_numbers_that_are_reported(data, table):
    expected = evaluate(Table(table), data, 'val').metrics['N@10']
    lists = table.argsort(dim=1, descending=True).numpy()
    assert exchange.validation_ndcg(to_split(data), lists) == pytest.approx(expected)
    lists[:, 30:] = -1
    assert exchange.validation_ndcg(to_split(data), lists) <= expected


def test_top_items_are_those_of_the_largest_products():
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(700, 5)), rng.normal(size=(40, 5))
    expected = np.argsort(-users @ items.T, axis=1)[:, :12]
    assert np.array_equal(exchange.top_items(users, items, 12), expected)
    assert exchange.top_items(users, items, 40).shape == (700, 40)


SCRIPT = """
import argparse, sys
from pathlib import Path
import numpy as np
import exchange

assert not any(name.startswith(('torch', 'hellm')) for name in sys.modules)
parser = argparse.ArgumentParser()
parser.add_argument('folder', type=Path)
parser.add_argument('--kind')
parser.add_argument('--seed', type=int)
parser.add_argument('--fail', action='store_true')
parser.add_argument('--refit', action='store_true')
args = parser.parse_args()
if args.fail:
    sys.exit(3)
split = exchange.read_split(args.folder)
count = np.bincount(split.item, minlength=split.num_items) + 1e-3 * args.seed
lists = exchange.top_items(np.ones((split.num_users, 1)), count[:, None], 6)
settings = {'kind': args.kind}
if args.refit:
    settings['train'] = {'split': 'train+val'}
answer = {
    'versions': {'popular': '1.0'},
    'settings': settings,
    'trained_parameters': 0,
    'validation': {'seconds': 0.5, 'peak_memory_bytes': exchange.peak_memory()},
}
history = 'train+val' if args.refit else 'train'
exchange.write_answer(args.folder, {history: lists}, answer)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with a recipe and a peer that needs numpy alone."""
    rng = np.random.default_rng(0)
    rows = [[u, *(1 + rng.choice(30, 6, replace=False))] for u in range(1, 41)]
    text = '\n'.join(' '.join(map(str, row)) for row in rows)
    (tmp_path / 'sequences.txt').write_text(text)
    (tmp_path / 'recipe.yaml').write_text(
        'data: {interactions: sequences.txt}\nmodel: {name: LightGCN}\n'
        'datasets: {tiny: {}}\n'
    )
    script = tmp_path / 'popular.py'
    script.write_text(SCRIPT)
    (tmp_path / 'exchange.py').write_text(Path(exchange.__file__).read_text())
    peer = peers.Peer('popular', str(script), ('--kind=plain',))
    monkeypatch.setitem(peers.PEERS, 'popular', peer)
    monkeypatch.setattr(peers, 'environment', lambda *_: Path(sys.executable))
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGUMENTS = ['popular', '--dataset=tiny', '--recipe=recipe.yaml', '--results=results']


def test_command_leaves_a_result(checkout):
    assert peers.main([*ARGUMENTS, '--seed=5']) == 0
    path = checkout / 'results' / 'tiny-popular-5.json'
    result = json.loads(path.read_text())
    assert result['peer'] == 'popular 1.0'
    assert result['config'] == {'kind': 'plain'}
    assert set(result['test']) == {
        'history=train, mask=seen',
        'history=train, mask=train',
    }
    assert set(result['ranks']) == set(result['test'])
    for numbers in result['test'].values():
        assert numbers['users'] == 40
        assert 0 < numbers['metrics']['R@10'] < 1
        assert numbers['missed'] > 0
    assert result['validation']['metrics']['N@10'] > 0
    assert '--seed 5' in result['command']


def test_a_peer_that_was_trained_on_validation_items_has_no_numbers_of_them(checkout):
    assert peers.main([*ARGUMENTS, '--refit']) == 0
    path = checkout / 'results' / 'tiny-popular-2024.json'
    result = json.loads(path.read_text())
    assert result['validation']['metrics'] == {}
    assert set(result['test']) == {
        'history=train+val, mask=seen',
        'history=train+val, mask=none',
    }
    assert Result(path, result).saw_validation


def test_failed_peer_leaves_none(checkout, capfd):
    assert peers.main(ARGUMENTS) == 0
    (checkout / 'results' / 'tiny-popular-2024.json').unlink()
    assert peers.main([*ARGUMENTS, '--fail']) == 1
    assert 'exit status 3' in capfd.readouterr().err
    assert list((checkout / 'results').iterdir()) == []
    assert not (checkout / 'runs/tiny/popular/2024/info.json').exists()


def test_environments_are_made_once(tmp_path, monkeypatch):
    calls = []

    def run(command, check):
        calls.append(command)
        (tmp_path / 'venvs' / 'some').mkdir(parents=True, exist_ok=True)
        return SimpleNamespace()

    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.setattr(environments, 'REQUIREMENTS', tmp_path)
    (tmp_path / 'some.txt').write_text('some==1\n')
    python = environments.environment('some', tmp_path / 'venvs')
    assert [call[2] for call in calls] == ['venv', 'pip']
    assert calls[1][0] == str(python)
    assert environments.environment('some', tmp_path / 'venvs') == python
    assert len(calls) == 2
    (tmp_path / 'some.txt').write_text('some==2\n')
    environments.environment('some', tmp_path / 'venvs')
    assert len(calls) == 4


def test_every_peer_has_its_files():
    for peer in peers.PEERS.values():
        assert (peers.FOLDER / peer.script).is_file()
        pinned = (environments.REQUIREMENTS / f'{peer.library}.txt').read_text()
        assert f'{peer.library}' in pinned
        assert all('==' in line for line in pinned.splitlines())
