"""LATTICE against its dense formulas, and when its graph is refreshed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hellm_pyg.data.split import fold_in
from hellm_pyg.nn.models import LATTICE
from tests.nn.models.modalities import (
    BATCH,
    DATA,
    DIMS,
    NUM_ITEMS,
    NUM_USERS,
    WITHOUT,
    assert_learns,
    assert_same_gradients,
    bipartite,
    cosines,
    features,
    has,
    interactions,
    lightgcn,
    neighbors,
    planted,
    scatter_parameters,
    symmetric,
)

NAMES = ('image', 'text')


def make(**kwargs: object) -> LATTICE:
    options: dict = {'lambda_reg': 0.2, 'num_neighbors': 4, 'raw_share': 0.6, **kwargs}
    model = LATTICE(NUM_USERS, NUM_ITEMS, DIMS, 6, **options)
    scatter_parameters(model)
    return model.double()


def projected(model: LATTICE, name: str) -> Tensor:
    linear = model.features.linear[name]
    x = features(name) + model.features.offset[name]
    return x @ linear.weight.t() + linear.bias


def nearest(similarity: Tensor, name: str, k: int) -> Tensor:
    known = has(name)
    similarity = similarity.detach().masked_fill(~known, -torch.inf)
    mask = torch.zeros_like(similarity)
    mask.scatter_(1, similarity.topk(k).indices, 1.0)
    return mask * known[:, None]


def dense_item_graph(model: LATTICE, share: float, k: int) -> Tensor:
    there = torch.stack([has(name) for name in NAMES]).double()
    weight = torch.exp(model.modality_logit)[:, None] * there
    weight = weight / weight.sum(dim=0).clamp(min=1e-9)
    fixed = learned = torch.zeros(NUM_ITEMS, NUM_ITEMS, dtype=torch.double)
    for m, name in enumerate(NAMES):
        raw = symmetric(neighbors(name) * cosines(features(name)))
        similarity = cosines(projected(model, name))
        fixed = fixed + weight[m][:, None] * raw
        near = nearest(similarity, name, k) * similarity
        learned = learned + weight[m][:, None] * near
    return share * fixed + (1 - share) * symmetric(learned)


def oracle(
    model: LATTICE, share: float = 0.6, k: int = 4, layers: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    A = bipartite(interactions()) + torch.eye(NUM_USERS + NUM_ITEMS)
    x = model.bipartite.embedding.weight
    z = lightgcn(A / A.sum(dim=1, keepdim=True), x, 2)
    h = x[NUM_USERS:]
    for _ in range(layers):
        h = dense_item_graph(model, share, k) @ h
    norm = h.pow(2).sum(dim=1, keepdim=True)
    norm = norm.where(norm > 0, 1.0).sqrt()  # of the item without features
    user, item = z[:NUM_USERS], z[NUM_USERS:] + h / norm
    loss = torch.zeros((), dtype=torch.double)
    for u, i, j in zip(BATCH.user, BATCH.pos_item, BATCH.neg_item, strict=True):
        loss = loss - F.logsigmoid(user[u] @ (item[i] - item[j]))
        loss = loss + 0.2 / 2 * sum(v @ v for v in (user[u], item[i], item[j]))
    return user, item, loss / len(BATCH.user)


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({}, {}),
        ({'num_item_layers': 2}, {'layers': 2}),
        ({'num_neighbors': 50}, {'k': 9}),  # more than there are
        ({'raw_share': 0.0}, {'share': 0.0}),
        ({'refresh': 'epoch'}, {}),
    ],
    ids=str,
)
def test_forward_loss_and_gradients_equal_the_dense_formulas(
    options: dict, expected: dict
) -> None:
    model = make(**options)
    model.on_epoch_start(DATA)
    user, item, loss = oracle(model, **expected)
    torch.testing.assert_close(model.encode(DATA), (user, item), atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, model.loss(DATA, BATCH), loss)


def move(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.features.parameters():
            parameter.add_(torch.randn_like(parameter))
        model.modality_logit.add_(torch.tensor([1.0, -1.0]))


def test_neighbours_are_found_once_an_epoch() -> None:
    torch.manual_seed(0)
    model = make()
    model.on_epoch_start(DATA)
    before = model.neighbor.clone()
    for m, name in enumerate(NAMES):
        missing = WITHOUT[name]
        assert bool((before[m, missing] == -1).all())
        rest = before[m, has(name)]
        assert bool((rest >= 0).all())
        assert not bool(torch.isin(rest, torch.tensor(missing)).any())
    move(model)
    model.loss(DATA, BATCH)
    assert torch.equal(model.neighbor, before)
    model.on_epoch_start(DATA)
    assert not torch.equal(model.neighbor, before)


def item_gradients(model: LATTICE) -> set[str]:
    model.zero_grad()
    model.loss(DATA, BATCH).backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


def test_refresh_decides_which_steps_reach_the_graph() -> None:
    torch.manual_seed(0)
    every = {name for name, _ in make().named_parameters()}
    for refresh, later in (('step', every), ('epoch', {'bipartite.embedding.weight'})):
        model = make(refresh=refresh).train()
        model.on_epoch_start(DATA)
        assert item_gradients(model) == every
        first = model.encode(DATA)[1]
        assert item_gradients(model) == later
        move(model)
        assert torch.equal(model.encode(DATA)[1], first) == (refresh == 'epoch')
        model.on_epoch_start(DATA)
        assert item_gradients(model) == every


@pytest.mark.parametrize('refresh', ['step', 'epoch'])
def test_the_state_goes_on_within_an_epoch(refresh: str) -> None:
    torch.manual_seed(0)
    model = make(refresh=refresh).train()
    model.on_epoch_start(DATA)
    model.loss(DATA, BATCH)
    move(model)
    other = make(refresh=refresh).train()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(other.loss(DATA, BATCH), model.loss(DATA, BATCH))
    assert item_gradients(other) == item_gradients(model)


def test_an_unstarted_model_finds_its_neighbours() -> None:
    model, started = make(), make()
    started.on_epoch_start(DATA)
    with torch.inference_mode():
        out = model.encode(DATA)
    torch.testing.assert_close(out, started.encode(DATA))
    model.loss(DATA, BATCH).backward()


def test_reads_the_graph_of_the_data() -> None:
    model = make()
    before, after = model.encode(DATA), model.encode(fold_in(DATA))
    assert not torch.allclose(before[0], after[0])


@pytest.mark.parametrize('refresh', ['step', 'epoch'])
def test_learns_planted_structure(refresh: str) -> None:
    torch.manual_seed(0)
    dims = {'image': 16, 'text': 12}
    assert_learns(LATTICE(200, 100, dims, 16, refresh=refresh), planted())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_neighbors': 0}, r"'num_neighbors' must be positive.*got 0 and 1"),
        ({'raw_share': 1.5}, r"'raw_share' must lie in \[0, 1\] \(got 1.5\)"),
        ({'refresh': 'never'}, r"'refresh' must be 'step' or 'epoch' \(got 'never'\)"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LATTICE(3, 3, DIMS, **options)


def test_repr() -> None:
    model = LATTICE(7, 5, {'text': 3}, 8)
    assert repr(model) == "LATTICE(7, 5, {'text': 3}, 8, num_layers=2)"
