"""Every model on every device: a training step and ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hellm_pyg.data import PairLoader, SequenceLoader
from hellm_pyg.evaluation import evaluate
from hellm_pyg.evaluation.scoring import place
from hellm_pyg.nn.models import (
    BM3,
    FREEDOM,
    GRCN,
    LATTICE,
    VBPR,
    GRU4Rec,
    HeLLMPre,
    ItemKNN,
    LightGCN,
    Popularity,
    SASRec,
    SLMRec,
)
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph
from tests.builders import rec_data
from tests.devices import DEVICES

USERS, ITEMS, WIDTH, LENGTH = 40, 30, 8, 10
DIMS = {'image': 5, 'text': 6}
SIZES = (USERS, ITEMS)

MODELS: dict[str, Callable[[], Any]] = {
    'LightGCN': lambda: LightGCN(*SIZES, WIDTH),
    'HeLLMPre': lambda: HeLLMPre(*SIZES, WIDTH),
    'HeLLMPre, full': lambda: HeLLMPre(
        *SIZES,
        WIDTH,
        scope='full',
        normalization_user='hgnn',
        normalization_item='rw',
        trainable_hyperedge_weight=True,
        modalities=list(DIMS),
    ),
    'VBPR': lambda: VBPR(*SIZES, DIMS, WIDTH),
    'GRCN': lambda: GRCN(*SIZES, DIMS, WIDTH),
    'LATTICE': lambda: LATTICE(*SIZES, DIMS, WIDTH),
    'SLMRec': lambda: SLMRec(*SIZES, DIMS, WIDTH),
    'BM3': lambda: BM3(*SIZES, DIMS, WIDTH, dropout=0.0),
    'FREEDOM': lambda: FREEDOM(*SIZES, DIMS, WIDTH),
    'SASRec': lambda: SASRec(ITEMS, WIDTH, max_len=LENGTH, dropout=0.0),
    'SASRec, unseen': lambda: SASRec(
        ITEMS, WIDTH, max_len=LENGTH, dropout=0.0, candidates='unseen'
    ),
    'SASRec, bce': lambda: SASRec(
        ITEMS, WIDTH, max_len=LENGTH, dropout=0.0, loss='bce'
    ),
    'GRU4Rec': lambda: GRU4Rec(ITEMS, WIDTH, dropout=0.0),
}
FLOORS = {'Popularity': lambda: Popularity(*SIZES), 'ItemKNN': lambda: ItemKNN(*SIZES)}


def make_data() -> Any:
    data = rec_data(*SIZES, modalities=DIMS, max_length=14)
    data['item'].x_text[[3, 4]] = torch.nan
    return KNNHyperedges(4)(UserItemGraph()(LeaveOneOut()(data)))


DATA = make_data()


@pytest.fixture(autouse=True)
def _whole_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    # Recurrent layers would round their inputs to 10 bits.
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def make(name: str) -> Any:
    """A model whose parts all matter, as it is in the middle of its training."""
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.on_epoch_start(DATA)
    return model


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', MODELS)
def test_a_training_step_is_that_in_double_precision(name: str, device: str) -> None:
    model, exact = make(name).to(device), make(name).double()
    if model.sampling == 'pairs':
        loader: Any = PairLoader(DATA, 16, num_neg=2)
    else:
        num_neg = int(name.endswith('bce'))
        loader = SequenceLoader(DATA, 'train', 16, max_len=LENGTH, num_neg=num_neg)
    batch = next(iter(loader))
    losses = []
    for own, where in ((model, torch.device(device)), (exact, torch.device('cpu'))):
        optimizer = torch.optim.SGD(own.train().parameters(), lr=0.1)
        loss = own.loss(place(DATA, where), batch.to(where))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().double().cpu())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    start, moved = make(name), 0
    for key, value in exact.named_parameters():
        found = model.get_parameter(key).detach()
        assert found.device.type == device
        torch.testing.assert_close(
            found.double().cpu(), value.detach(), rtol=1e-4, atol=1e-5
        )
        moved += int((found.cpu() != start.get_parameter(key)).sum())
    assert moved > 0


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize('name', [*MODELS, *FLOORS])
def test_ranks_are_those_in_double_precision(
    name: str, split: Any, device: str
) -> None:
    if name in FLOORS:
        exact = FLOORS[name]()
        exact.fit(DATA)
    else:
        exact = make(name).double()
    model = copy.deepcopy(exact).float().to(device)
    expected = evaluate(exact, DATA, split, max_len=LENGTH)
    # The data may lie on either device.
    for data in (DATA, place(DATA, torch.device(device))):
        found = evaluate(model, data, split, max_len=LENGTH, batch_size=7)
        assert torch.equal(found.user, expected.user)
        assert torch.equal(found.rank, expected.rank)
