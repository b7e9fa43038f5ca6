"""A script that trains in two processes; run by ``test_processes.py``.

The processes are forked, which is safe here only: nothing has computed before.
"""

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

from hellm_pyg.evaluation import evaluate
from tests.training.toy import CONFIG, Toy, kill_at, make_data, make_trainer

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


def main(folder: str) -> None:
    """All runs that the tests look at."""
    out = Path(folder)
    launch(compare, out / '1', 1)
    launch(compare, out / '2', 2)
    launch(undisturbed, out / 'whole')
    launch(interrupted, out / 'stopped')
    progress = (out / 'stopped' / 'state' / 'progress.json').read_text()
    (out / 'when-stopped.json').write_text(progress)
    launch(undisturbed, out / 'stopped')


if __name__ == '__main__':
    main(sys.argv[1])
