"""Two processes train as one does."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hellm_pyg.checkpoint import load_json, load_tensors

if sys.platform == 'win32':
    pytest.skip('the processes are forked', allow_module_level=True)


def _train(run_dir: Path, rank: int, processes: int, port: int) -> None:
    from accelerate.state import AcceleratorState, PartialState

    from hellm_pyg.evaluation import evaluate
    from tests.training.toy import CONFIG, Toy, make_data, make_trainer

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

    class Deterministic(Toy):
        """Without what depends on how many batches a process sees."""

        def on_epoch_start(self, data: Any) -> None:
            super().on_epoch_start(data)
            self.dropout.p = 0.0

        def loss(self, data: Any, batch: Any) -> torch.Tensor:
            value = super().loss(data, batch)
            self.mean.zero_()
            return value

    from dataclasses import replace

    # 2 processes x 1 batch = 1 process x 2 batches; the last window is odd.
    config = replace(CONFIG, accumulate=2 // processes, batch_size=19)
    run = make_trainer(run_dir, Deterministic(), config)
    assert PartialState().num_processes == processes
    metrics = run.fit()
    shard = (rank, processes)
    found = evaluate(run.model, make_data(), batch_size=7, shard=shard, beyond=True)
    assert {k: v for k, v in found.metrics.items() if k in metrics} == {
        k: v for k, v in metrics.items() if k in found.metrics
    }
    ranks = {'rank': found.rank.tolist(), 'user': found.user.tolist()}
    path = run_dir / f'found-{rank}.json'
    path.write_text(json.dumps({'metrics': found.metrics, **ranks}))
    if processes > 1:
        torch.distributed.destroy_process_group()


def _launch(run_dir: Path, processes: int) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    run_dir.mkdir()
    torch.multiprocessing.start_processes(
        _spawned, (run_dir, processes, port), nprocs=processes, start_method='fork'
    )


def _spawned(rank: int, *arguments: Any) -> None:
    _train(arguments[0], rank, *arguments[1:])


@pytest.mark.timeout(120)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    for processes in (1, 2):
        _launch(tmp_path / str(processes), processes)
    one, two = tmp_path / '1', tmp_path / '2'
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
    assert len(load_json(two / 'state' / 'random.json')) == 2
