"""GRCN against its formulas, node by node."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hellm_pyg.data.split import fold_in
from hellm_pyg.nn.models import GRCN
from tests.nn.models.batches import pair_batch
from tests.nn.models.modalities import (
    BATCH,
    DATA,
    DIMS,
    NUM_ITEMS,
    NUM_USERS,
    assert_learns,
    assert_same_gradients,
    features,
    has,
    interactions,
    planted,
    scatter_parameters,
    with_edges,
)

NAMES = ('image', 'text')


def make(**kwargs: object) -> GRCN:
    options: dict = {'lambda_reg': 0.3, **kwargs}
    model = GRCN(NUM_USERS, NUM_ITEMS, DIMS, 6, **options)
    scatter_parameters(model)
    return model.double()


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(dim=-1, keepdim=True).clamp(min=1e-24).sqrt()


def attention(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the columns of the mask, zero rows where there are none."""
    weight = torch.exp(logits) * mask
    return weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-30)


def oracle(
    model: GRCN, rounds: int, negatives: Tensor, R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    vectors, edge_weights = [], []
    for m, name in enumerate(NAMES):
        linear = model.features.linear[name]
        y = features(name) @ linear.weight.t() + linear.bias
        f = unit(torch.where(y > 0, y, 0.01 * y)) * has(name)[:, None]
        p = unit(model.preference[name])
        sent = R * has(name)  # what users receive from
        for _ in range(rounds):
            p = unit(p + attention(p @ f.t(), sent) @ f)
        to_user = attention(p @ f.t(), sent)
        to_item = attention(f @ p.t(), R.t())
        vectors.append(torch.cat([p + to_user @ f, f + to_item @ p]))
        trust = model.confidence.weight[:, m]
        edge_weights.append(
            (to_user * trust[NUM_USERS:], to_item * trust[:NUM_USERS]),
        )
    upper, lower = (
        torch.stack(side).max(dim=0).values.clamp(min=0)
        for side in zip(*edge_weights, strict=True)
    )
    q = unit(model.embedding.weight)
    A = torch.zeros(len(q), len(q), dtype=torch.double)
    A[:NUM_USERS, NUM_USERS:] = upper * R
    A[NUM_USERS:, :NUM_USERS] = lower * R.t()
    e = torch.cat([q + A @ q + A @ A @ q, *vectors], dim=1)
    user, item = e[:NUM_USERS], e[NUM_USERS:]

    table, size = model.embedding.weight, negatives.numel()
    loss = torch.zeros((), dtype=torch.double)
    for u, i, row in zip(BATCH.user, BATCH.pos_item, negatives, strict=True):
        for j in row:
            margin = user[u] @ item[i] - user[u] @ item[j]
            loss = loss - torch.log(torch.sigmoid(margin)) / size
            for k in (i, j):
                both = table[u].pow(2) + table[NUM_USERS + k].pow(2)
                loss = loss + 0.3 * both.mean() / (2 * size)
    loss = loss + 0.3 * model.preference['image'].pow(2).mean()
    for name in NAMES:
        loss = loss + 0.3 * model.preference[name][BATCH.user].pow(2).mean()
    return user, item, loss


@pytest.mark.parametrize(
    ('options', 'rounds', 'num_neg'),
    [
        ({}, 3, 1),
        ({}, 3, 2),
        ({'num_routing': 1}, 1, 1),
        ({'num_routing': 0}, 0, 1),
        ({'routing_bug': True}, 0, 1),
    ],
    ids=str,
)
def test_forward_loss_and_gradients_equal_the_formulas(
    options: dict, rounds: int, num_neg: int
) -> None:
    model = make(**options)
    negatives = torch.arange(len(BATCH.user) * num_neg).view(-1, num_neg) % NUM_ITEMS
    neg = negatives.squeeze(1) if num_neg == 1 else negatives
    batch = pair_batch(BATCH.user.tolist(), BATCH.pos_item.tolist(), neg.tolist())
    user, item, loss = oracle(model, rounds, negatives, interactions())
    torch.testing.assert_close(model.encode(DATA), (user, item), atol=1e-6, rtol=1e-5)
    assert_same_gradients(model, model.loss(DATA, batch), loss)


def test_repeated_interactions_count_once() -> None:
    model = make()
    edges = DATA['user', 'interacts', 'item'].edge_index.as_tensor()
    twice = with_edges(DATA, torch.cat([edges, edges[:, :5]], dim=1))
    torch.testing.assert_close(model.encode(twice), model.encode(DATA))


def test_nodes_without_interactions_stay_what_they_are() -> None:
    model = make()
    data = with_edges(DATA, torch.tensor([[0, 0, 1], [7, 1, 7]]))
    user, item = model.encode(data)  # user 1 has only an item without image
    expected = oracle(model, 3, BATCH.neg_item.unsqueeze(1), interactions(data))
    torch.testing.assert_close((user, item), expected[:2], atol=1e-6, rtol=1e-5)
    alone = unit(model.embedding.weight[NUM_USERS + 3])
    torch.testing.assert_close(item[3, :6], alone)


def test_the_penalty_is_a_switch() -> None:
    model = make(lambda_reg=0.0)
    ranking = model.ranking_loss(model.encode(DATA), BATCH, 0.0)
    assert torch.equal(model.loss(DATA, BATCH), ranking)


def test_reads_the_graph_of_the_data() -> None:
    model = make()
    before = model.encode(DATA)
    assert not torch.allclose(before[0], model.encode(fold_in(DATA))[0])
    torch.testing.assert_close(model.encode(DATA), before)


def test_learns_planted_structure() -> None:
    torch.manual_seed(0)
    assert_learns(GRCN(200, 100, {'image': 16, 'text': 12}, 16), planted())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"'num_routing' is too small \(got -1\)"):
        GRCN(3, 3, DIMS, num_routing=-1)
    with pytest.raises(ValueError, match=r"'feature_dims' needs at least one"):
        GRCN(3, 3, {})


def test_repr() -> None:
    assert repr(GRCN(7, 5, {'text': 3}, 8)) == "GRCN(7, 5, {'text': 3}, 8)"
