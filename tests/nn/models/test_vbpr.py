"""VBPR against its formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hellm_pyg.nn.models import VBPR
from tests.nn.models.batches import pair_batch, sequence_batch
from tests.nn.models.modalities import (
    BATCH,
    DATA,
    DIMS,
    NUM_ITEMS,
    NUM_USERS,
    assert_learns,
    assert_same_gradients,
    features,
    planted,
    without_features,
)


def make(**kwargs: float) -> VBPR:
    torch.manual_seed(0)
    model = VBPR(NUM_USERS, NUM_ITEMS, DIMS, 6, **{'lambda_reg': 0.2, **kwargs})
    torch.nn.init.normal_(model.projection.bias)
    return model.double()


def oracle(model: VBPR, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.cat([features('image'), features('text')], dim=1)
    visual = x @ model.projection.weight.t() + model.projection.bias
    item = torch.cat([model.item_embedding.weight, visual], dim=1)
    user = model.user_embedding.weight
    loss = torch.zeros((), dtype=torch.double)
    size, count = negatives.shape
    for u, i, row in zip(BATCH.user, BATCH.pos_item, negatives, strict=True):
        for j in row:
            margin = user[u] @ item[i] - user[u] @ item[j]
            loss = loss - torch.log(torch.sigmoid(margin)) / (size * count)
    for rows in (user[BATCH.user], item[BATCH.pos_item], item[negatives.flatten()]):
        loss = loss + 0.2 / size * rows.pow(2).sum().sqrt()
    return user, item, loss


@pytest.mark.parametrize('num_neg', [1, 3])
def test_forward_loss_and_gradients_equal_the_formulas(num_neg: int) -> None:
    model = make()
    negatives = torch.arange(len(BATCH.user) * num_neg).view(-1, num_neg) % NUM_ITEMS
    neg = negatives.squeeze(1) if num_neg == 1 else negatives
    batch = pair_batch(BATCH.user.tolist(), BATCH.pos_item.tolist(), neg.tolist())
    user, item, loss = oracle(model, negatives)
    out = model.encode(DATA)
    torch.testing.assert_close(out, (user, item), atol=1e-6, rtol=1e-5)
    scores = model.score(out, sequence_batch([[]], user=[3]))
    torch.testing.assert_close(scores[0], item @ user[3], atol=1e-6, rtol=1e-5)
    assert_same_gradients(model, model.loss(DATA, batch), loss)


def test_penalty_is_a_switch() -> None:
    model = make(lambda_reg=0.0)
    ranking = model.ranking_loss(model.encode(DATA), BATCH, 0.0)
    torch.testing.assert_close(model.loss(DATA, BATCH), ranking)
    assert make().loss(DATA, BATCH) > ranking + 0.1


def test_learns_planted_structure() -> None:
    data = planted()
    torch.manual_seed(0)
    model = VBPR(200, 100, {'image': 16, 'text': 12}, 16)
    assert_learns(model, data)
    torch.manual_seed(0)
    one = VBPR(200, 100, {'text': 12}, 16)
    assert_learns(one, data)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"'feature_dims' needs at least one.*\{\}"):
        VBPR(3, 3, {})
    with pytest.raises(ValueError, match=r"'embedding_dim' must be positive \(got 0"):
        VBPR(3, 3, DIMS, 0)
    with pytest.raises(ValueError, match=r"'x_text' of 5 channels.*got None"):
        make().encode(without_features(DATA, 'text'))
    wide = VBPR(NUM_USERS, NUM_ITEMS, {'text': 7})
    with pytest.raises(ValueError, match=r"'x_text' of 7.*got shape \[11, 5\]"):
        wide.encode(DATA)


def test_repr() -> None:
    assert repr(VBPR(7, 5, {'text': 3}, 8)) == "VBPR(7, 5, {'text': 3}, 8)"
