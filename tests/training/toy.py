"""A model with dropout, buffers and a frozen part; also a script that trains it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.config import EvalConfig, TrainConfig
from hellm_pyg.data import PairBatch, PairLoader, SequenceBatch
from hellm_pyg.training import Trainer
from hellm_pyg.transforms import LeaveOneOut
from tests.builders import rec_data

USERS, ITEMS = 60, 40
CONFIG = TrainConfig(
    epochs=4,
    batch_size=16,
    lr=0.05,
    weight_decay=0.01,
    optimizer='adamw',
    schedule='cosine',
    warmup_epochs=0.5,
    clip=1.0,
    accumulate=2,
    seed=7,
)


class Toy(torch.nn.Module):
    """Matrix factorisation that uses everything a state must hold.

    Args:
        before_loss: Called with the number of losses so far.
    """

    def __init__(self, before_loss: Callable[[int], object] = lambda n: None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.user = torch.nn.Parameter(torch.randn(USERS, 8, generator=generator))
        self.item = torch.nn.Parameter(torch.randn(ITEMS, 8, generator=generator))
        self.bias = torch.nn.Parameter(torch.zeros(ITEMS))
        self.frozen = torch.nn.Parameter(torch.ones(8), requires_grad=False)
        self.dropout = torch.nn.Dropout(0.3)
        self.register_buffer('mean', torch.zeros(()))
        self.register_buffer('noise', torch.zeros(8), persistent=False)
        self.register_buffer('start', torch.zeros(1))
        self.before_loss = before_loss
        self.losses = 0

    def on_epoch_start(self, data: HeteroData) -> None:
        noise = torch.randn(8)  # of the seed, not persistent
        self.noise = 0.1 * noise.to(self.user.device)
        self.start = self.item.detach().mean().view(1)  # of the weights, persistent

    def encode(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        return self.user * self.frozen, self.item

    def score(self, encoded: tuple[Tensor, Tensor], batch: SequenceBatch) -> Tensor:
        return encoded[0][batch.user] @ encoded[1].t() + self.bias

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        self.losses += 1
        self.before_loss(self.losses)
        self.mean = 0.9 * self.mean + 0.1 * self.item.detach().mean()
        user = self.dropout(self.user[batch.user] * self.frozen + self.noise)
        pos, neg = self.item[batch.pos_item], self.item[batch.neg_item]
        margin = (user * (pos - neg)).sum(dim=1) + self.start + 0.1 * self.mean
        margin = margin + self.bias[batch.pos_item] - self.bias[batch.neg_item]
        return F.softplus(-margin).mean()

    def embeddings(self, data: HeteroData) -> dict[str, Tensor]:
        return {'user': self.user.detach(), 'item': self.item.detach()}


def make_data() -> HeteroData:
    return LeaveOneOut()(rec_data(USERS, ITEMS, seed=3, min_length=3, max_length=9))


def make_trainer(
    run_dir: Path, model: Any = None, config: TrainConfig = CONFIG, **options: Any
) -> Trainer:
    data = options.pop('data', None)
    data = make_data() if data is None else data
    loader = PairLoader(data, config.batch_size, sampling='interaction', seed=5)
    options.setdefault('evaluation', EvalConfig(ks=(5, 10), batch_size=16))
    return Trainer(
        Toy() if model is None else model, data, loader, config, run_dir, **options
    )


def kill_at(count: int, number: int = signal.SIGKILL) -> Callable[[int], None]:
    def maybe(losses: int) -> None:
        if losses == count:
            os.kill(os.getpid(), number)

    return maybe


def main(run_dir: str, moments: str) -> None:
    """Trains one run a moment, each in a process that kills itself.

    Args:
        run_dir: Parent folder.
        moments: JSON: folder name to number of losses and minutes between states.
    """
    for name, (losses, save_minutes) in json.loads(moments).items():
        child = os.fork()  # importing torch anew would take seconds
        if child == 0:
            torch.set_num_threads(1)
            config = replace(CONFIG, save_minutes=save_minutes)
            make_trainer(Path(run_dir, name), Toy(kill_at(losses)), config).fit()
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f'{name}: not killed')


if __name__ == '__main__':
    main(*sys.argv[1:])
