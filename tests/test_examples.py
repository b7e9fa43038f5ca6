"""Every example runs as a user would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(script: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, str(ROOT / 'examples' / script), *arguments],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


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
    card = (tmp_path / 'data_card.md').read_text(encoding='utf-8')
    assert '| users | 400 |' in card
    assert '{title}. {brand}' in card
    assert len(list((tmp_path / 'shop' / 'photos').iterdir())) == 52


def test_layers_in_gcn_learn():
    last = _run('layers_in_gcn.py').splitlines()[-1]
    assert float(last.split('test ')[1]) > 0.8  # by chance, .2
