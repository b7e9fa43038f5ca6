"""The library's own models go through the trainer, and resume exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

from hellm_pyg.checkpoint import load_tensors
from hellm_pyg.config import TrainConfig
from hellm_pyg.data import PairLoader, SequenceLoader
from hellm_pyg.evaluation import evaluate
from hellm_pyg.evaluation.scoring import place
from hellm_pyg.nn.models import HeLLMPre, LightGCN, SASRec
from hellm_pyg.training import Trainer
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph
from tests.builders import rec_data
from tests.devices import DEVICES, accelerator_on

USERS, ITEMS = 60, 40


@pytest.fixture(scope='module')
def data() -> HeteroData:
    transform = Compose(
        [
            LeaveOneOut(),
            UserItemGraph(),
            KNNHyperedges(k=4, modalities=('text',)),
        ]
    )
    return transform(rec_data(USERS, ITEMS, min_length=1, max_length=12))


def pairs(data: HeteroData) -> PairLoader:
    return PairLoader(data, 32, sampling='user', seed=1)


def histories(data: HeteroData) -> SequenceLoader:
    return SequenceLoader(data, 'train', 8, max_len=10, num_neg=3, seed=1)


MODELS: dict[str, tuple[Callable[[], Any], Callable[[HeteroData], Any]]] = {
    'LightGCN': (lambda: LightGCN(USERS, ITEMS, embedding_dim=8), pairs),
    'HeLLMPre': (lambda: HeLLMPre(USERS, ITEMS, embedding_dim=8, scope=16), pairs),
    'SASRec': (
        lambda: SASRec(ITEMS, embedding_dim=8, max_len=10, loss='sampled_softmax'),
        histories,
    ),
}


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', MODELS)
def test_a_model_trains_where_its_data_lie(
    tmp_path: Path, data: HeteroData, name: str, device: str
) -> None:
    build, load = MODELS[name]
    there = place(data, torch.device(device))
    found = []
    for number, own in enumerate((data, there)):
        torch.manual_seed(0)
        config = TrainConfig(epochs=2, lr=0.01, accumulate=2, max_len=10, clip=1.0)
        model, run_dir = build(), tmp_path / str(number)
        with accelerator_on(device) as accelerator:
            Trainer(
                model, own, load(own), config, run_dir, accelerator=accelerator
            ).fit()
        assert {value.device.type for value in model.parameters()} == {device}
        found.append(load_tensors(run_dir / 'embeddings.safetensors'))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
    spread = found[0]['item'].std(dim=0)
    assert spread.isfinite().all()
    assert spread.min() > 0


@pytest.mark.parametrize('name', MODELS)
def test_a_model_trains_and_resumes(
    tmp_path: Path, data: HeteroData, name: str
) -> None:
    build, load = MODELS[name]

    def trainer(run_dir: Path) -> Trainer:
        torch.manual_seed(0)
        config = TrainConfig(epochs=2, lr=0.01, accumulate=2, max_len=10)
        return Trainer(build(), data, load(data), config, run_dir)

    whole = trainer(tmp_path / 'whole')
    metrics = whole.fit()
    assert evaluate(whole.model, data, max_len=10).metrics == metrics
    vectors = load_tensors(tmp_path / 'whole' / 'embeddings.safetensors')
    assert vectors['item'].shape == (ITEMS, 8)

    stopped = trainer(tmp_path / 'stopped')
    loss, calls = stopped.model.loss, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == len(stopped.loader) + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*args)

    stopped.model.loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert stopped.state.epoch == 1
    assert stopped.state.step == 1
    resumed = trainer(tmp_path / 'stopped')
    assert resumed.fit() == metrics
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
