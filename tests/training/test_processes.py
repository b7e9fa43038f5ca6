"""Two processes train as one does, and stop and resume together."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from hellm_pyg.checkpoint import load_json, load_tensors
from hellm_pyg.evaluation import evaluate
from tests.training.toy import CONFIG, Toy, kill_at, make_data, make_trainer

if sys.platform == 'win32':
    pytest.skip('the processes are forked', allow_module_level=True)

Task = Callable[[Path, int, int], None]


class Deterministic(Toy):
    """Without what depends on how many batches a process sees."""

    def on_epoch_start(self, data: Any) -> None:
        super().on_epoch_start(data)
        self.dropout.p = 0.0

    def loss(self, data: Any, batch: Any) -> torch.Tensor:
        value = super().loss(data, batch)
        self.mean.zero_()
        return value


def compare(run_dir: Path, rank: int, processes: int) -> None:
    # 2 processes x 1 batch = 1 process x 2 batches; the last window is odd.
    config = replace(CONFIG, accumulate=2 // processes, batch_size=19)
    run = make_trainer(run_dir, Deterministic(), config)
    assert len(run.loader) % 2 == 1
    metrics = run.fit()
    shard = (rank, processes)
    found = evaluate(run.model, make_data(), batch_size=7, shard=shard, beyond=True)
    assert found.metrics['N@10'] == metrics['N@10']
    content = {
        'metrics': found.metrics,
        'rank': found.rank.tolist(),
        'user': found.user.tolist(),
    }
    (run_dir / f'found-{rank}.json').write_text(json.dumps(content))


def undisturbed(run_dir: Path, rank: int, processes: int) -> None:
    make_trainer(run_dir).fit()


def interrupted(run_dir: Path, rank: int, processes: int) -> None:
    number = 20 if rank == 0 else -1  # one process is enough to stop all
    with pytest.raises(KeyboardInterrupt):
        make_trainer(run_dir, Toy(kill_at(number, signal.SIGINT))).fit()


def _run(rank: int, task: Task, run_dir: Path, processes: int, port: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    os.environ |= {
        'RANK': str(rank),
        'LOCAL_RANK': str(rank),
        'WORLD_SIZE': str(processes),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
        'ACCELERATE_USE_CPU': 'true',
    }
    task(run_dir, rank, processes)
    if processes > 1:
        torch.distributed.destroy_process_group()


def launch(task: Task, run_dir: Path, processes: int = 2) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    run_dir.mkdir(exist_ok=True)
    torch.multiprocessing.start_processes(
        _run, (task, run_dir, processes, port), nprocs=processes, start_method='fork'
    )


def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = tmp_path / '1', tmp_path / '2'
    launch(compare, one, 1)
    launch(compare, two, 2)
    assert load_json(two / 'metrics.json')['settings']['processes'] == 2
    ours, theirs = (load_tensors(run / 'model.safetensors') for run in (two, one))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    curves = [load_json(run / 'metrics.json')['curve'] for run in (one, two)]
    for first, second in zip(*curves, strict=True):
        assert second['loss'] == pytest.approx(first['loss'], rel=1e-4)
    # Both processes know all ranks, and they are those of a single process.
    found = [load_json(two / f'found-{rank}.json') for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]['user'] == load_json(one / 'found-0.json')['user']


def test_two_processes_stop_and_resume_together(tmp_path: Path) -> None:
    launch(undisturbed, tmp_path / 'whole')
    launch(interrupted, tmp_path / 'stopped')
    state = load_json(tmp_path / 'stopped' / 'state' / 'progress.json')['progress']
    assert state['step'] > 0
    assert len(load_json(tmp_path / 'stopped' / 'state' / 'random.json')) == 2
    launch(undisturbed, tmp_path / 'stopped')
    ours, theirs = (
        load_tensors(tmp_path / name / 'state' / 'weights.safetensors')
        for name in ('stopped', 'whole')
    )
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
