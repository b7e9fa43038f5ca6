"""BM3 against its dense formulas."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hellm_pyg.data.split import fold_in
from hellm_pyg.nn.models import BM3
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
    planted,
    scatter_parameters,
    symmetric,
)


def make(**kwargs: object) -> BM3:
    options: dict = {'num_layers': 2, 'lambda_reg': 0.3, **kwargs}
    model = BM3(NUM_USERS, NUM_ITEMS, DIMS, 6, **options)
    scatter_parameters(model)
    return model.double().eval()


def dense_outputs(model: BM3) -> tuple[Tensor, Tensor]:
    x = model.bipartite.embedding.weight
    z = lightgcn(symmetric(bipartite(interactions())), x, 2)
    return z[:NUM_USERS], z[NUM_USERS:] + x[NUM_USERS:]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return x @ y / (x.norm() * y.norm()).clamp(min=1e-8)


def oracle(model: BM3) -> Tensor:
    q = model.predictor
    user, item = dense_outputs(model)
    views = {
        name: (features(name) + model.features.offset[name])
        @ model.features.linear[name].weight.t()
        + model.features.linear[name].bias
        for name in DIMS
    }
    total = torch.zeros((), dtype=torch.double)
    for u, i in zip(BATCH.user, BATCH.pos_item, strict=True):
        total = total + 1 - cosine(q(user[u]), item[i].detach())
        total = total + 1 - cosine(q(item[i]), user[u].detach())
        for name in DIMS:
            if has(name)[i]:
                m = views[name][i]
                total = total + 2.0 * (1 - cosine(q(m), item[i].detach()))
                total = total + 2.0 * (1 - cosine(q(m), m.detach()))
    norms = user.pow(2).sum().sqrt() + item.pow(2).sum().sqrt()
    return total / len(BATCH.user) + 0.3 * norms / NUM_ITEMS


def test_forward_loss_and_gradients_equal_the_dense_formulas() -> None:
    model = make()
    user, item = dense_outputs(model)
    weight, bias = model.predictor.weight, model.predictor.bias
    expected = (user @ weight.t() + bias, item @ weight.t() + bias)
    torch.testing.assert_close(model.encode(DATA), expected, atol=1e-6, rtol=1e-5)
    assert_same_gradients(model, model.loss(DATA, BATCH), oracle(model))


def test_the_predictor_may_be_left_out_of_scores() -> None:
    model = make(predict=False)
    torch.testing.assert_close(
        model.encode(DATA), dense_outputs(model), atol=1e-6, rtol=1e-5
    )
    assert torch.equal(model.loss(DATA, BATCH), make().loss(DATA, BATCH))


def test_negatives_are_not_read() -> None:
    model, other = make(), dataclasses.replace(BATCH, neg_item=BATCH.neg_item.flip(0))
    assert torch.equal(model.loss(DATA, BATCH), model.loss(DATA, other))


def test_dropout_is_on_the_targets_in_training() -> None:
    torch.manual_seed(0)
    model = make(lambda_modality=0.0, lambda_reg=0.0, dropout=0.5).train()
    fixed = model.encode(DATA)
    assert torch.equal(fixed[0], model.encode(DATA)[0])
    torch.manual_seed(1)
    loss = model.loss(DATA, BATCH)
    torch.manual_seed(1)
    user, item = dense_outputs(model)
    user, item = user[BATCH.user], item[BATCH.pos_item]
    targets = F.dropout(user.detach(), 0.5), F.dropout(item.detach(), 0.5)
    q = model.predictor
    expected = [
        1 - cosine(q(x), y)
        for xs, ys in ((user, targets[1]), (item, targets[0]))
        for x, y in zip(xs, ys, strict=True)
    ]
    expected = torch.stack(expected).sum() / len(user)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(model.loss(DATA, BATCH), loss)
    assert torch.equal(model.eval().loss(DATA, BATCH), model.loss(DATA, BATCH))


def test_frozen_features_and_no_modality_terms() -> None:
    model = make(trainable_features=False)
    assert not any('offset' in name for name in model.state_dict())
    plain = make(lambda_modality=0.0)
    assert plain.loss(DATA, BATCH) < make().loss(DATA, BATCH)
    plain.loss(DATA, BATCH).backward()
    unused = [n for n, p in plain.named_parameters() if p.grad is None]
    assert all(name.startswith('features.') for name in unused)
    assert len(unused) == 6


def test_reads_the_graph_of_the_data() -> None:
    model = make()
    before, after = model.encode(DATA), model.encode(fold_in(DATA))
    assert not torch.allclose(before[0], after[0])


def test_learns_planted_structure() -> None:
    torch.manual_seed(0)
    assert_learns(BM3(200, 100, {'image': 16, 'text': 12}, 16), planted())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"'dropout' must lie in \[0, 1\) \(got 1"):
        BM3(3, 3, DIMS, dropout=1.0)
    with pytest.raises(ValueError, match=r"'lambda_modality'.*got -1"):
        BM3(3, 3, DIMS, lambda_modality=-1)


def test_repr() -> None:
    assert repr(BM3(7, 5, {'text': 3}, 8)) == "BM3(7, 5, {'text': 3}, 8, num_layers=1)"
