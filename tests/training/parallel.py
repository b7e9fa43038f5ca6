"""A script that trains in two processes; run by ``test_processes.py``.

The processes are forked, which is safe here only: nothing has computed before.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hellm_pyg.evaluation import evaluate
from hellm_pyg.training.processes import main_first, make_accelerator
from tests.training.test_teacher import TAUGHT, sasrec, trainer
from tests.training.toy import CONFIG, Toy, kill_at, make_data, make_trainer

Task = Callable[[Path, int, int], None]


class Deterministic(Toy):
    """Without what depends on how many batches a process sees.

    Some batches read ``rare`` and none reads ``never``; processes start apart.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rare = torch.nn.Parameter(torch.zeros(8))
        self.never = torch.nn.Parameter(torch.ones(2, 8))
        self.user.data += rank

    def on_epoch_start(self, data: Any) -> None:
        super().on_epoch_start(data)
        self.dropout.p = 0.0

    def loss(self, data: Any, batch: Any) -> torch.Tensor:
        value = super().loss(data, batch)
        self.mean.zero_()
        if int(batch.user[0]) % 3 == 0:
            value = value + ((self.rare - 1) ** 2).sum()
        return value


def compare(run_dir: Path, rank: int, processes: int) -> None:
    # 2 processes x 2 batches = 1 process x 4 batches; the last window is odd.
    config = replace(CONFIG, accumulate=4 // processes, batch_size=19)
    run = make_trainer(run_dir, Deterministic(rank), config)
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


def taught(run_dir: Path, rank: int, processes: int) -> None:
    config = replace(TAUGHT, accumulate=4 // processes)
    teachers = {'a': sasrec(1, dropout=0.5), 'b': sasrec(2)}
    trainer(run_dir, config, model=sasrec(4, dropout=0.0), teachers=teachers).fit()


def in_turn(run_dir: Path, rank: int, processes: int) -> None:
    accelerator, path = make_accelerator(), run_dir / 'made'
    with main_first(accelerator):
        assert path.exists() == (rank > 0)
        if rank == 0:
            time.sleep(0.2)
            path.touch()
    with pytest.raises(ValueError, match='met by all'), main_first(accelerator):
        raise ValueError('met by all')


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
    launch(taught, out / 'taught-1', 1)
    launch(taught, out / 'taught-2', 2)
    launch(in_turn, out / 'turns')
    launch(undisturbed, out / 'whole')
    launch(interrupted, out / 'stopped')
    progress = (out / 'stopped' / 'state' / 'progress.json').read_text()
    (out / 'when-stopped.json').write_text(progress)
    launch(undisturbed, out / 'stopped')


if __name__ == '__main__':
    main(sys.argv[1])
