"""Every example runs as a user would run it."""

import io
import json
import os
import re
import runpy
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch

from hellm_pyg import experiment
from hellm_pyg.config import load_config
from hellm_pyg.datasets import FakeRecDataset, IdMap
from hellm_pyg.llm import LLMRecommender, load_model
from hellm_pyg.recommendation import recommend
from hellm_pyg.transforms import LeaveOneOut
from tests.llm.tiny import recommender, tiny_llm
from tests.shop import write_shop

ROOT = Path(__file__).parents[1]


def _run(script: str, *arguments: str) -> str:
    path = str(ROOT / 'examples' / script)
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setattr(sys, 'argv', [path, *arguments])
        runpy.run_path(path, run_name='__main__')
    return output.getvalue()


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')
    return out, _run('pretrain.py', '--out', str(out))


@pytest.fixture(scope='module')
def finetuned(pretrained):
    out, _ = pretrained
    return out, _run('finetune.py', '--run', str(out))


def _recall(output: str, name: str) -> float:
    line = next(line for line in output.splitlines() if line.startswith(name))
    return float(line.split("'R@10': ")[1].split(',')[0])


def test_pretrain_beats_popularity(pretrained):
    out, output = pretrained
    floor = _recall(output, 'popularity')
    assert _recall(output, 'hellm_pre') > 2 * floor
    assert _recall(output, 'sasrec') > 2 * floor
    assert (out / 'hellm_pre' / 'embeddings.safetensors').is_file()


def test_finetune_beats_popularity(pretrained, finetuned):
    _, output = finetuned
    assert _recall(output, 'HeLLM') > 2 * _recall(pretrained[1], 'popularity')
    assert 'history=train+val, mask=seen' in output


def test_recommend_speaks_original_ids(finetuned):
    out, _ = finetuned
    lines = _run('recommend.py', '--run', str(out), '--user', 'user_042').splitlines()
    assert lines[0].startswith('user_042')
    assert [line.split('.')[0] for line in lines[1:6]] == ['1', '2', '3', '4', '5']
    assert all('of cluster' in line for line in lines[1:6])
    assert len(lines) == 12


@contextmanager
def _serving(script, folder):
    """The address of a server, and its process."""
    process = subprocess.Popen(
        [sys.executable, str(script), '--model', str(folder), '--port', '0'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = re.search(r'http://[\d.:]+', process.stdout.readline())
        assert said, process.communicate()[1][-2000:]
        yield said[0], process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope='module')
def server(finetuned):
    """The address of a server, and the model that it serves."""
    folder = finetuned[0] / 'hellm' / 'saved'
    with _serving(ROOT / 'examples' / 'serve.py', folder) as (url, _):
        yield url, LLMRecommender.from_pretrained(folder)


def _post(url, request):
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    try:
        with urlopen(url, body, timeout=60) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.load(error)


def test_serve_answers_at_once_what_recommend_does(server):
    url, model = server
    ids = model.ids
    requests = []
    for number in range(12):
        torch.manual_seed(number)
        history = ids.item_id(torch.randint(ids.num_items, (1 + 2 * number,)))
        requests.append({'history': history, 'k': 1 + number})
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda request: _post(url, request), requests))
    data = FakeRecDataset(ids.num_users, ids.num_items, pre_transform=LeaveOneOut())[0]
    for request, (status, answer) in zip(requests, answers, strict=True):
        assert status == 200
        history, k = request['history'], request['k']
        left = ids.num_items - len(set(history))
        rows = recommend(model, data, ids, histories=[history], k=left)
        expected = {row.item: (row.title, row.score) for row in rows}
        # Requests are padded to the longest that waits; in bf16 that shows, a little.
        near = partial(pytest.approx, abs=0.03)
        items = answer['items']
        assert [row['score'] for row in items] == near([row.score for row in rows[:k]])
        assert len({row['item'] for row in items}) == k
        for row in items:
            title, score = expected[row['item']]
            assert (row['title'], row['score']) == (title, near(score))


def test_serve_says_what_is_wrong(server):
    url, model = server
    item = model.ids.item_id(0)
    for request, reason in [
        (
            {'history': ['none']},
            r"at least one item id that is known \(got \['none'\]\)",
        ),
        ({'history': [item], 'k': 0}, r"'k' needs to be from 1 to 120 \(got 0\)"),
        ({'history': []}, "'history' needs at least one item"),
        ({'history': item}, "'history' needs to be a list"),
        ({'history': [item], 'candidates': []}, "'candidates' needs at least one"),
        ({'history': [item], 'candidates': item}, "'candidates' needs to be a list"),
        ({'items': [item]}, 'needs the form'),
        ({'user': 1}, "'user' needs '--model' to be the folder of a run"),
        ([item], 'needs the form'),
        (b'{"history": [', 'Expecting value'),
    ]:
        status, answer = _post(url, request)
        assert status == 400
        assert re.search(reason, answer['error'])
    status, answer = _post(url, {'history': [item], 'k': 120})
    assert status == 200
    assert len(answer['items']) == 119  # all but the history
    with urlopen(url, timeout=60) as response:
        assert (response.status, json.load(response)) == (200, {'items': 120})


def test_serve_leaves_out_what_it_does_not_know(server):
    url, model = server
    known = model.ids.item_id([3, 5])
    status, answer = _post(url, {'history': [known[0], 'new', known[1], None]})
    assert status == 200
    assert answer['unknown'] == ['new', None]
    expected = _post(url, {'history': known})[1]['items']
    assert [row['item'] for row in answer['items']] == [row['item'] for row in expected]


def test_serve_ranks_candidates_alone(server):
    url, model = server
    history, some = model.ids.item_id([3, 5]), model.ids.item_id([40, 5, 7, 99])
    every = _post(url, {'history': history, 'k': 118})[1]['items']
    request = {'history': history, 'candidates': [*some, 'new']}
    status, answer = _post(url, request)
    assert (status, answer['unknown']) == (200, [])
    assert answer['unknown_candidates'] == ['new']
    assert answer['items'] == [row for row in every if row['item'] in some]
    assert len(answer['items']) == 3


def test_serve_reads_as_many_items_as_the_model_is_to(server):
    url, model = server
    last = model.ids.item_id(range(50))
    scores = [
        {
            row['item']: row['score']
            for row in _post(url, {'history': h, 'k': 120})[1]['items']
        }
        for h in (last, [*model.ids.item_id([60, 61, 62]), *last])
    ]
    assert set(scores[0]) - set(scores[1]) == set(model.ids.item_id([60, 61, 62]))
    assert scores[1] == {item: scores[0][item] for item in scores[1]}


def test_serve_takes_the_folder_of_a_run(tmp_path):
    overrides = [*write_shop(tmp_path), 'model.embedding_dim=8']
    experiment.pretrain(load_config('pretrain_best', overrides), tmp_path / 'run')
    # More clients at once than a server's queue is long unless it says so.
    how = ['--measure', '200', '--clients', '64']
    output = _run('serve.py', '--model', str(tmp_path / 'run'), *how)
    assert output.startswith('200 requests of 64 clients, 24 items')


def test_serve_knows_the_users_of_a_run(tmp_path):
    overrides = [*write_shop(tmp_path), 'model.embedding_dim=8']
    experiment.pretrain(load_config('lightgcn', overrides), tmp_path / 'run')
    run = experiment.load_run(tmp_path / 'run')
    user = run.ids.users[3]
    rows = recommend(run.model, run.data, run.ids, [user], k=5)
    with _serving(ROOT / 'examples' / 'serve.py', tmp_path / 'run') as (url, _):
        status, answer = _post(url, {'user': user, 'k': 5})
        assert (status, answer['unknown']) == (200, [])
        assert [row['item'] for row in answer['items']] == [row.item for row in rows]
        best = rows[0].item
        _, answer = _post(url, {'user': user, 'history': [best, 'new'], 'k': 5})
        assert best not in [row['item'] for row in answer['items']]
        assert answer['unknown'] == ['new']
        _, answer = _post(url, {'user': user, 'history': ['new'], 'k': 5})
        assert [row['item'] for row in answer['items']] == [row.item for row in rows]
        assert 'needs the form' in _post(url, {'user': None})[1]['error']
        for wrong in ('nobody', [user], {'id': user}):
            status, answer = _post(url, {'user': wrong})
            assert status == 400
            assert answer['error'] == f'unknown user {wrong!r}'  # nobody like them


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """The address of a model of 1100 items, of which one gives no number."""
    folder = tmp_path_factory.mktemp('large')
    tiny_llm().save_pretrained(folder / 'llm')
    table = torch.randn(1100, 4)
    table[7] = 3e38  # too large for a product
    llm = load_model(str(folder / 'llm'), dtype=torch.float32)
    model = recommender(llm=llm, lora=None, item_embeddings={'seq': table})
    torch.nn.init.constant_(model.projector.mlp.lins[0].weight, 1.0)
    model.save_pretrained(folder / 'saved', IdMap(['ann'], list(range(1100))))
    with _serving(ROOT / 'examples' / 'serve.py', folder / 'saved') as (url, _):
        yield url


def test_serve_bounds_its_answers(large):
    status, answer = _post(large, {'history': [1], 'k': 1001})
    assert status == 400
    assert answer['error'] == "'k' needs to be from 1 to 1000 (got 1001)"
    assert len(_post(large, {'history': [1], 'k': 1000})[1]['items']) == 1000


def test_serve_fails_only_what_cannot_be_answered(large):
    histories = [[7 if number % 4 == 0 else number] for number in range(1, 33)]
    with ThreadPoolExecutor(32) as clients:
        answers = clients.map(lambda items: _post(large, {'history': items}), histories)
    for items, (status, answer) in zip(histories, answers, strict=True):
        assert status == (500 if items == [7] else 200)
        assert ('not finite' in answer.get('error', '')) is (items == [7])


def test_serve_says_that_a_run_lacks_its_weights(tmp_path):
    overrides = [*write_shop(tmp_path), 'model.embedding_dim=8', 'train.epochs=1']
    experiment.pretrain(load_config('lightgcn', overrides), tmp_path / 'run')
    (tmp_path / 'run' / 'model.safetensors').unlink()
    with pytest.raises(SystemExit, match=r'model\.safetensors'):
        _run('serve.py', '--model', str(tmp_path / 'run'))


@pytest.mark.parametrize('size', ['', 'abc', '-1', '1000000', '9' * 5000])
def test_serve_ends_connections_whose_body_it_does_not_read(server, size):
    host, port = server[0].removeprefix('http://').split(':')
    with socket.create_connection((host, int(port)), 30) as client:
        # What follows the head is no second request.
        head = f'POST / HTTP/1.1\r\nContent-Length: {size}\r\n\r\n'
        client.sendall(f'{head}{{}}'.encode())
        with client.makefile() as answer:
            status, *_ = lines = answer.read().splitlines()  # until it is closed
    assert status.split()[1] == '400'
    assert "'Content-Length' needs to be below" in lines[-1]


def test_serve_ends_connections_whose_body_does_not_come(finetuned, tmp_path):
    text = (ROOT / 'examples' / 'serve.py').read_text()
    (tmp_path / 'serve.py').write_text(text.replace('timeout = 60', 'timeout = 1'))
    folder = finetuned[0] / 'hellm' / 'saved'
    with _serving(tmp_path / 'serve.py', folder) as (url, process):
        host, port = url.removeprefix('http://').split(':')
        with socket.create_connection((host, int(port)), 60) as client:
            client.sendall(b'POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{')
            with client.makefile() as answer:
                assert answer.read().split()[1] == '500'  # until it is closed
        process.kill()
        assert 'Traceback' not in process.communicate()[1]


def test_serve_refuses_to_measure_nothing(capsys):
    for wrong in (['--measure', '-1'], ['--measure', '1', '--clients', '0']):
        with pytest.raises(SystemExit, match='2'):
            _run('serve.py', *wrong)
        assert "'--clients' 1 or more" in capsys.readouterr().err


def test_serve_measures_itself():
    output = _run('serve.py', '--measure', '40', '--clients', '4')
    assert output.startswith('40 requests of 4 clients, 120 items')
    median, most, rate, size = map(float, re.findall(r'\d+\.\d', output))
    assert 0 < median <= most
    assert rate > 0
    assert 1 <= size <= 4


def test_own_data_goes_from_tables_and_pictures_to_own_ids(tmp_path):
    output = _run('own_data.py', '--out', str(tmp_path))
    assert _recall(output, 'hellm_pre') > 2 * _recall(output, 'popularity')
    lines = output.splitlines()
    for start in ('C-0045', 'Somebody new'):
        at = next(i for i, line in enumerate(lines) if line.startswith(start))
        assert [line.split()[0] for line in lines[at + 1 : at + 6]] == [
            '1.',
            '2.',
            '3.',
            '4.',
            '5.',
        ]
        kind = 'lamp' if start == 'C-0045' else 'mug'
        taken = [line for line in lines[at + 1 : at + 6] if f' {kind}, ' in line]
        assert len(taken) >= 3
        assert all(line.split()[1].startswith('SKU-') for line in taken)
    assert lines[-3] == 'Of what has just arrived:'
    assert lines[-2].startswith('1. SKU-101 lamp, blue (')
    assert lines[-1].startswith('2. SKU-100 mug, silver (')
    card = (tmp_path / 'data_card.md').read_text(encoding='utf-8')
    assert '| users | 400 |' in card
    assert '{title}. {brand}' in card
    assert len(list((tmp_path / 'shop' / 'photos').iterdir())) == 52
    assert len((tmp_path / 'shop' / 'stock.txt').read_text().splitlines()) == 27


def test_layers_in_gcn_learn():
    last = _run('layers_in_gcn.py').splitlines()[-1]
    assert float(last.split('test ')[1]) > 0.8  # by chance, .2
