"""Two processes give the numbers and the files of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hellm_pyg.checkpoint import load_json, load_tensors, save_json
from tests.shop import write_llm, write_shop

ROOT = Path(__file__).parents[2]
RUNS = ('graph', 'seq', 'llm')
# Moves all scores alike: its gradient is rounding, which Adam makes as large as any.
NO_GRADIENT = 'head.adapter.mlp.lins.1.bias'

if sys.platform == 'win32':
    pytest.skip('the processes are forked', allow_module_level=True)


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('runs')
    save_json(folder / 'overrides.json', write_shop(folder))
    write_llm(folder / 'tiny')
    script = [sys.executable, '-m', 'tests.experiment.parallel_runs', str(folder)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    subprocess.run(script, cwd=ROOT, env=environment, check=True, timeout=250)
    return folder


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines()]


def files(run: Path) -> set[str]:
    every = (path.relative_to(run) for path in run.rglob('*'))
    return {str(path) for path in every if 'events.out' not in path.name}


@pytest.mark.parametrize('name', RUNS)
def test_training_in_two_processes_equals_accumulation_in_one(
    runs: Path, name: str
) -> None:
    one, two = runs / '1' / name, runs / '2' / name
    assert load_json(two / 'metrics.json')['settings']['processes'] == 2
    ours, theirs = (
        load_tensors(run / 'state' / 'weights.safetensors') for run in (two, one)
    )
    for key, value in theirs.items():
        if key == NO_GRADIENT:
            continue
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6)
    lines = log(one)
    assert len(log(two)) == len(lines) > 3
    # Adam hardly sees the size of a gradient; its norm and the clipping do.
    for line, other in zip(lines, log(two), strict=True):
        for key in {'loss', 'grad_norm', 'lr'} & set(line):
            assert other[key] == pytest.approx(line[key], rel=1e-5)
    assert any(line.get('grad_norm', 0) > 0.5 for line in lines)


@pytest.mark.parametrize('name', [*RUNS, 'floor', 'sum'])
def test_evaluation_in_two_processes_equals_that_in_one(runs: Path, name: str) -> None:
    alone, first, second = (
        load_json(runs / found)
        for found in ('1/found-0.json', '2/found-0.json', '2/found-1.json')
    )
    for size in (4, 512):
        assert first[f'{name}, {size}'] == second[f'{name}, {size}']
        assert first[f'{name}, {size}'] == alone[f'{name}, {size}']
    # The metrics on validation that the training has returned.
    assert first[name] == second[name] == pytest.approx(alone[name])


@pytest.mark.parametrize('name', [*RUNS, 'floor', 'sum'])
def test_one_process_writes(runs: Path, name: str) -> None:
    left = files(runs / '2' / name)
    evaluated = {
        '.evaluation.lock',
        'evaluation.json',
        'ranks-test-train+val-seen.safetensors',
    }
    assert left == files(runs / '1' / name) - evaluated
    assert not [path for path in left if path.endswith('.tmp')]
