from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.preparation.shop import NUM_ITEMS, NUM_USERS, write_orders, write_pictures

from .running import error, hellm


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    monkeypatch.chdir(tmp_path)
    write_orders(tmp_path)
    return tmp_path


def test_from_files_to_recommendations(files: Path) -> None:
    orders = (files / 'orders.csv').read_text().splitlines()
    output = hellm(
        'prepare', 'table', '--interactions', 'orders.csv', '--items', 'catalogue.csv',
        '--text', '', '--min-length', 3, '--out', 'shop',
    ).stdout  # fmt: skip
    assert "column 'customer' is read as the users" in output
    assert re.search(rf'users +│ {NUM_USERS - 1} ', output)
    assert 'Data card: shop/data_card.md' in output
    commands = re.findall(r'^  hellm (.*)', output, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [
        'pretrain', 'pretrain', 'finetune', 'evaluate', 'recommend'
    ]  # fmt: skip
    assert 'model.i2i=false' in commands[0]
    assert commands[1] == 'pretrain sasrec dataset=shop --out runs/shop/seq'
    teacher = "'train.distill.runs={}' train.distill.runs.plain=runs/shop/seq"
    assert teacher in commands[2]
    few = ['train.epochs=1', 'train.batch_size=8', 'model.embedding_dim=8']
    hellm(*commands[0].split(), *few)
    user = commands[4].split()[3]
    recommended = hellm('recommend', 'runs/shop/graph', '--user', user, '-k', 4).stdout
    items = re.findall(r'│ (SKU-\d\d) │ thing', recommended)
    bought = {line.split(',')[1] for line in orders if line.startswith(f'{user},')}
    assert len(items) >= 3
    assert not bought & set(items)


def test_commands_that_follow_with_features(files: Path) -> None:
    import numpy as np

    np.save(files / 'x.npy', np.eye(NUM_ITEMS, dtype='float32'))
    common = ['--interactions', 'orders.csv', '--items', 'catalogue.csv', '--text', '']
    output = hellm(
        'prepare', 'table', *common, '--features', 'tags=x.npy', '--out', 'a'
    ).stdout
    tables = 'llm.tables.graph=runs/a/graph llm.tables.seq=runs/a/seq'
    teachers = 'train.distill.runs.plain=runs/a/plain '
    teachers += 'train.distill.runs.smoothed=runs/a/seq'
    finetune = f'finetune_best dataset=a {tables} {teachers} --out runs/a/hellm'
    assert finetune in output
    assert 'hellm pretrain sasrec dataset=a --out runs/a/plain' in output
    assert 'hellm pretrain sasrec_best dataset=a --out runs/a/seq' in output
    assert 'i2i' not in output


def test_options_arrive(files: Path) -> None:
    write_pictures(files / 'photos')
    output = hellm(
        'prepare', 'table', '--interactions', 'orders.csv', '--user', 'customer',
        '--item', 'sku', '--time', 'ordered_at', '--items', 'catalogue.csv',
        '--item-id', 'sku', '--title', 'name', '--text', '', '--images', 'photos',
        '--min-rating', 2, '--min-count', 2, '--val-from', '2024-02-10',
        '--test-from', '2024-02-20', '--name', 'mine', '--out', 'shop',
    ).stdout  # fmt: skip
    assert f'{NUM_ITEMS - 2} of {NUM_ITEMS} items have a picture' in output
    assert re.search(r'name +│ mine ', output)
    card = (files / 'shop' / 'data_card.md').read_text()
    assert 'by date: training before 2024-02-10' in card
    assert 'below min\\_rating' in card


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--interactions', 'oders.csv'], "did you mean 'orders.csv'"),
        (['--interactions', 'orders.csv', '--user', 'sk'], "column 'sk', which"),
        (['--interactions', 'orders.csv', '--features', 'x.npy'], 'NAME=FILE'),
        (
            [
                '--interactions',
                'orders.csv',
                '--features',
                't=a.npy',
                '--features',
                't=b.npy',
            ],
            "names 't' twice",
        ),
        (
            ['--interactions', 'orders.csv', '--text', '{name}'],
            "'--text' reads columns",
        ),
        (['--interactions', 'catalogue.csv'], "columns: 'sku', 'name', 'brand'"),
    ],
)
def test_errors_are_one_line(files: Path, arguments: list[str], message: str) -> None:
    assert message in error('prepare', 'table', *arguments, '--out', 'shop')
    assert not (files / 'shop').exists()


def test_errors_name_options_as_they_are_typed(files: Path) -> None:
    with (files / 'orders.csv').open('a') as file:
        file.write(',SKU-01,2024-01-01,3\n')
    given = ['--interactions', 'orders.csv', '--text', '', '--out', 'shop']
    assert error('prepare', 'table', *given).endswith('rows out with --bad-rows=drop')
    message = error('prepare', 'table', *given, '--bad-rows=drop', '--min-count', 99)
    assert "'--min-rating', '--min-count' and '--min-length' leave" in message
    dates = ['--val-from', '2024-03-01', '--test-from', '2024-02-01']
    message = error('prepare', 'table', *given, '--bad-rows=drop', *dates)
    assert "'--val-from' and '--test-from' need to ascend" in message
    message = error('prepare', 'table', *given, '--bad-rows=drop', *dates[:2])
    assert "'--val-from' and '--test-from' make a hold-out by date together" in message
    recipe = ['data.interactions=orders.csv', 'data.user=customer', 'data.item=sku']
    message = error('prepare', *recipe, 'data.time=ordered_at')
    assert message.endswith('rows out with data.bad_rows=drop')


def test_mistyped_commands_and_recipes() -> None:
    assert "Did you mean 'table'" in hellm('prepare', 'tabel', '-x', code=2).stderr
    assert "the nearest is 'sasrec'" in error('prepare', 'sasrek')
    assert "the nearest is 'sasrec'" in error('prepare', 'recipe', 'sasrek')


@pytest.mark.parametrize('command', ['table', 'amazon', 'recipe'])
def test_help_shows_examples(command: str) -> None:
    output = hellm('prepare', command, '--help').stdout
    name = '' if command == 'recipe' else f' {command}'
    assert re.search(rf'^ +hellm prepare{name} ', output, re.MULTILINE)


def test_as_a_process(files: Path) -> None:
    command = [sys.executable, '-m', 'hellm_pyg', 'prepare', 'table']
    command += ['--interactions', 'orders.csv', '--out', 'shop']
    run = subprocess.run(command, cwd=files, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'hellm recommend runs/shop/hellm --user C-00 -k 10' in run.stdout
    assert (files / 'shop' / 'dataset.yaml').is_file()
