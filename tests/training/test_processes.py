"""Two processes train as one does, and stop and resume together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from hellm_pyg.checkpoint import load_json, load_tensors
from hellm_pyg.training.processes import make_accelerator

ROOT = Path(__file__).parents[2]

if sys.platform == 'win32':
    pytest.skip('the processes are forked', allow_module_level=True)


def test_an_apple_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        assert make_accelerator().device == torch.device('cpu')
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('processes')
    script = [sys.executable, '-m', 'tests.training.parallel', str(folder)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    subprocess.run(script, cwd=ROOT, env=environment, check=True, timeout=250)
    return folder


def test_two_processes_equal_one(runs: Path) -> None:
    one, two = runs / '1', runs / '2'
    assert load_json(two / 'metrics.json')['settings']['processes'] == 2
    ours, theirs = (load_tensors(run / 'model.safetensors') for run in (two, one))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    # Passed over by the optimiser: not even decayed.
    assert torch.equal(ours['never'], torch.ones(2, 8))
    assert ours['rare'].abs().min() > 0
    curves = [load_json(run / 'metrics.json')['curve'] for run in (one, two)]
    for first, second in zip(*curves, strict=True):
        assert second['loss'] == pytest.approx(first['loss'], rel=1e-4)
    # Both processes know all ranks, and they are those of a single process.
    found = [load_json(two / f'found-{rank}.json') for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]['user'] == load_json(one / 'found-0.json')['user']


def test_two_processes_are_taught_as_one(runs: Path) -> None:
    ours, theirs = (
        load_tensors(runs / f'taught-{processes}' / 'model.safetensors')
        for processes in (2, 1)
    )
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_stop_and_resume_together(runs: Path) -> None:
    state = load_json(runs / 'when-stopped.json')['progress']
    assert not state['stopped']
    assert state['step'] > 0
    assert len(load_json(runs / 'stopped' / 'state' / 'random.json')) == 2
    ours, theirs = (
        load_tensors(runs / name / 'state' / 'weights.safetensors')
        for name in ('stopped', 'whole')
    )
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
