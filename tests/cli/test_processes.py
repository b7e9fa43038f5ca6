"""Commands under ``accelerate launch``, as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator

from hellm_pyg.checkpoint import load_json, load_tensors
from hellm_pyg.training.processes import make_accelerator
from tests.shop import write_shop

from .running import error, hellm

ROOT = Path(__file__).parents[2]
# 30 users make 5 batches: the last step has one.
SASREC = ['pretrain', 'sasrec', 'model.embedding_dim=8', 'model.dropout=0']
SMALL = ['train.batch_size=7', 'train.epochs=3', 'train.eval_every=1', 'train.clip=0.5']
ENDLESS = [*SMALL[:1], 'train.epochs=100000', 'train.patience=100000']
LAUNCH = ['accelerate.commands.launch', '--multi_gpu', '--num_processes', '2']
PATIENCE = 100  # seconds, on a busy machine

needs_fork = pytest.mark.skipif(sys.platform == 'win32', reason='POSIX signals')


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, '-m', *LAUNCH, '--main_process_port', '0']
    command += ['-m', 'hellm_pyg', *map(str, arguments)]
    environment = {
        **os.environ,
        'ACCELERATE_USE_CPU': 'true',
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': str(ROOT),
    }
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, list[Any]]]:
    """A training that has a state, its folder and its two processes."""
    run_dir = tmp_path / 'run'
    launcher = start(*SASREC, *write_shop(tmp_path), *ENDLESS, '--out', run_dir)
    workers: list[psutil.Process] = []
    try:
        wait_for((run_dir / 'state' / 'progress.json').is_file, launcher)
        workers = psutil.Process(launcher.pid).children(recursive=True)
        workers = [w for w in workers if w.environ().get('LOCAL_RANK')]
        workers.sort(key=lambda worker: worker.environ()['LOCAL_RANK'])
        assert len(workers) == 2
        yield launcher, run_dir, workers
    finally:
        for process in (launcher, *workers):
            if psutil.pid_exists(process.pid):
                process.kill()
        launcher.communicate()


def wait_for(done: Any, launcher: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.1)


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines()]


def test_two_processes_say_and_give_what_one_does(tmp_path: Path) -> None:
    common = [*SASREC, *write_shop(tmp_path), *SMALL]
    launcher = start(*common, '--out', tmp_path / 'two')
    output, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, errors
    assert output.count('validation') == 1
    assert errors.count('epoch 3/3') == 1
    hellm(*common, 'train.accumulate=2', '--out', tmp_path / 'one')
    one, two = log(tmp_path / 'one'), log(tmp_path / 'two')
    assert load_json(tmp_path / 'two' / 'metrics.json')['settings']['processes'] == 2
    for line, other in zip(one, two, strict=True):
        for key in {'loss', 'grad_norm', 'lr'} & set(line):
            assert other[key] == pytest.approx(line[key], rel=1e-4)
    theirs, ours = (
        load_tensors(tmp_path / name / 'embeddings.safetensors')['item']
        for name in ('one', 'two')
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@needs_fork
def test_ctrl_c_stops_both_with_a_state(endless: Any) -> None:
    launcher, run_dir, workers = endless
    launcher.send_signal(signal.SIGINT)  # the terminal tells the launcher alone
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode != 0
    assert errors.count('Interrupted in epoch') == 1
    assert errors.count('The same command goes on') == 1
    assert not any(worker.is_running() for worker in workers)
    assert len(load_json(run_dir / 'state' / 'random.json')) == 2
    # The state is that of the interrupted step: no line of the log is beyond it.
    state = load_json(run_dir / 'state' / 'progress.json')['progress']
    assert state['position'] == (run_dir / 'log.jsonl').stat().st_size


@needs_fork
def test_a_process_that_dies_ends_the_others(endless: Any) -> None:
    launcher, run_dir, workers = endless
    workers[0].kill()
    launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode != 0
    assert not any(worker.is_running() for worker in workers)
    state = load_json(run_dir / 'state' / 'progress.json')['progress']
    assert state['total_steps'] > 0


def test_commands_whose_work_is_not_shared_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ('WORLD_SIZE', 'LOCAL_RANK', 'RANK'):
        monkeypatch.setenv(name, {'WORLD_SIZE': '2'}.get(name, '0'))
    message = error('recommend', 'run', '--user', 'u01')
    assert "'recommend' works in one process (got 2)" in message
    assert "'hellm recommend'" in message


def test_processes_that_do_not_share_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Accelerator().num_processes == 1
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(ValueError, match=r'got 2.*ACCELERATE_USE_CPU=true'):
        make_accelerator()
    # Of the others, everybody learns who it was.
    monkeypatch.setenv('RANK', '1')
    result = hellm('evaluate', tmp_path / 'none', code=2)
    assert result.stderr.startswith('Process 1: Error: ')
