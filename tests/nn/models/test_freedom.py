"""FREEDOM against its dense formulas, and what its pruning draws."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from hellm_pyg.data.split import fold_in
from hellm_pyg.nn.models import FREEDOM
from tests.nn.models.modalities import (
    BATCH,
    DATA,
    DIMS,
    NUM_ITEMS,
    NUM_USERS,
    assert_learns,
    assert_same_gradients,
    bipartite,
    features,
    has,
    interactions,
    lightgcn,
    neighbors,
    planted,
    scatter_parameters,
    symmetric,
    with_edges,
)

WEIGHTS = {'image': 0.1, 'text': 0.9}


def make(**kwargs: object) -> FREEDOM:
    options: dict = {
        'lambda_modality': 0.4,
        'edge_dropout': 0.5,
        'modality_weights': WEIGHTS,
        **kwargs,
    }
    model = FREEDOM(NUM_USERS, NUM_ITEMS, DIMS, 6, **options)
    scatter_parameters(model)
    return model.double()


def dense_item_graph(weights: dict[str, float]) -> Tensor:
    total = sum(
        weight * has(name).double()[:, None] * symmetric(neighbors(name))
        for name, weight in weights.items()
    )
    there = sum(weight * has(name).double() for name, weight in weights.items())
    scale = torch.where(there > 0, sum(weights.values()) / there.clamp(min=1e-9), 0.0)
    return scale[:, None] * total


def oracle(model: FREEDOM, R: Tensor, layers: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    x = model.bipartite.embedding.weight
    z = lightgcn(symmetric(bipartite(R)), x, 2)
    h = x[NUM_USERS:] if layers > 0 else torch.zeros_like(x[NUM_USERS:])
    for _ in range(layers):
        h = dense_item_graph(WEIGHTS) @ h
    user, item = z[:NUM_USERS], z[NUM_USERS:] + h
    tables = {
        name: (features(name) + model.features.offset[name])
        @ model.features.linear[name].weight.t()
        for name in DIMS
    }
    loss = torch.zeros((), dtype=torch.double)
    for u, i, j in zip(BATCH.user, BATCH.pos_item, BATCH.neg_item, strict=True):
        loss = loss - torch.log(torch.sigmoid(user[u] @ (item[i] - item[j])))
        for name, table in tables.items():
            if has(name)[i] and has(name)[j]:
                margin = user[u] @ (table[i] - table[j])
                loss = loss - 0.4 * torch.log(torch.sigmoid(margin))
    return user, item, loss / len(BATCH.user)


def kept_edges(model: FREEDOM) -> Tensor:
    adjacency = model.pruned_adjacency(DATA).to_dense()
    assert torch.equal(adjacency, adjacency.t())
    return (adjacency[:NUM_USERS, NUM_USERS:] > 0).double()


@pytest.mark.parametrize('layers', [0, 1, 2])
def test_evaluation_equals_the_dense_formulas_on_the_whole_graph(layers: int) -> None:
    model = make(num_item_layers=layers).eval()
    user, item, loss = oracle(model, interactions(), layers)
    torch.testing.assert_close(model.encode(DATA), (user, item), atol=1e-6, rtol=1e-5)
    assert_same_gradients(model, model.loss(DATA, BATCH), loss)


def test_training_equals_the_dense_formulas_on_the_pruned_graph() -> None:
    model = make().train()
    torch.manual_seed(5)
    model.on_epoch_start(DATA)
    kept = kept_edges(model)
    total = interactions()
    assert bool((kept <= total).all())
    assert kept.sum() == round(0.5 * total.sum().item())
    user, item, loss = oracle(model, kept)
    torch.testing.assert_close(model.encode(DATA), (user, item), atol=1e-6, rtol=1e-5)
    assert_same_gradients(model, model.loss(DATA, BATCH), loss)


def test_an_epoch_keeps_its_graph_and_the_state_knows_it() -> None:
    model = make()
    torch.manual_seed(5)
    model.on_epoch_start(DATA)
    first = kept_edges(model)
    assert model.pruned_adjacency(DATA) is model.pruned_adjacency(DATA)
    other = make()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(kept_edges(other), first)
    model.on_epoch_start(DATA)
    assert not torch.equal(kept_edges(model), first)


def test_popular_pairs_are_dropped_more_often() -> None:
    # One edge of degrees (4, 4), the others of degrees (4, 1) or (1, 4).
    edges = torch.tensor([[0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 0, 0, 0]])
    data = with_edges(DATA, edges)
    model = make(edge_dropout=5.6 / 7)  # a single edge stays
    count = torch.zeros(NUM_USERS, NUM_ITEMS)
    torch.manual_seed(0)
    rounds = 1000
    for _ in range(rounds):
        model.on_epoch_start(data)
        count += model.pruned_adjacency(data).to_dense()[:NUM_USERS, NUM_USERS:] > 0
    assert count.sum() == rounds
    share = count[edges[0], edges[1]] / rounds
    expected = torch.tensor([1 / 4] + [1 / 2] * 6)
    torch.testing.assert_close(share, expected / expected.sum(), atol=0.05, rtol=0)


def test_a_graph_without_interactions_has_nothing_to_prune() -> None:
    data = with_edges(DATA, torch.empty(2, 0, dtype=torch.long))
    model = make()
    torch.testing.assert_close(model.train().encode(data), model.eval().encode(data))
    assert not bool(model.pruned_adjacency(data).to_dense().any())


def test_no_dropout_trains_on_the_whole_graph() -> None:
    model = make(edge_dropout=0.0)
    torch.testing.assert_close(model.train().encode(DATA), model.eval().encode(DATA))


def test_the_item_graph_has_rows_of_the_same_total_weight() -> None:
    graph = make(modality_weights=None).item_graph(DATA)
    dense = graph[0].to_dense()
    assert torch.equal(dense.t(), graph[1].to_dense())
    equal = dense_item_graph({'image': 0.5, 'text': 0.5})
    torch.testing.assert_close(dense.double(), equal, atol=1e-6, rtol=1e-5)
    some = has('image') | has('text')
    assert int(some.sum()) == NUM_ITEMS - 1
    torch.testing.assert_close(dense.sum(dim=1), some.float())


def test_losses_of_modalities_are_a_switch() -> None:
    model = make(lambda_modality=0.0).eval()
    ranking = model.ranking_loss(model.encode(DATA), BATCH, 0.0)
    assert torch.equal(model.loss(DATA, BATCH), ranking)
    assert make().eval().loss(DATA, BATCH) > ranking + 0.1


def test_reads_the_graph_of_the_data() -> None:
    model = make().eval()
    before, after = model.encode(DATA), model.encode(fold_in(DATA))
    assert not torch.allclose(before[0], after[0])


def test_learns_planted_structure() -> None:
    torch.manual_seed(0)
    assert_learns(FREEDOM(200, 100, {'image': 16, 'text': 12}, 16), planted())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"'edge_dropout' must lie in \[0, 1\)"):
        FREEDOM(3, 3, DIMS, edge_dropout=1.0)
    with pytest.raises(ValueError, match=r"'modality_weights'.*\['image', 'text'\]"):
        FREEDOM(3, 3, DIMS, modality_weights={'text': 1.0})
    with pytest.raises(ValueError, match=r"'lambda_modality'.*got -1"):
        FREEDOM(3, 3, DIMS, lambda_modality=-1)
    data = copy.copy(DATA)
    del data['item', 'member_of', 'text_hyperedge']
    with pytest.raises(ValueError, match=r'no relation .*KNNHyperedges'):
        make().encode(data)


def test_repr() -> None:
    model = FREEDOM(7, 5, {'text': 3}, 8)
    assert repr(model) == "FREEDOM(7, 5, {'text': 3}, 8, num_layers=2)"
