"""SLMRec against its dense formulas."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hellm_pyg.data.split import fold_in
from hellm_pyg.nn.models import SLMRec
from tests.builders import rec_data
from tests.nn.models.batches import pair_batch
from tests.nn.models.modalities import (
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

# Users 3 and 5 come twice, items 1 and 4 too; items 2 and 7 have no image.
BATCH = pair_batch([3, 5, 3, 0, 8, 5], [1, 2, 4, 7, 1, 4], [0, 9, 9, 1, 3, 0])


def make(**kwargs: object) -> SLMRec:
    options: dict = {'num_layers': 2, 'ssl_alpha': 0.3, 'ssl_temperature': 0.7}
    model = SLMRec(NUM_USERS, NUM_ITEMS, DIMS, 6, **{**options, **kwargs})
    scatter_parameters(model)
    return model.double()


def dense_views(model: SLMRec) -> tuple[list[Tensor], list[Tensor]]:
    A = symmetric(bipartite(interactions()))
    sources = [model.item_embedding.weight]
    for name in ('image', 'text'):
        x, linear = features(name), model.features.linear[name]
        norm = x.norm(dim=1, keepdim=True).clamp(min=1e-12)
        sources.append(x / norm @ linear.weight.t() + linear.bias)
    users, items = [], []
    for source in sources:
        z = lightgcn(A, torch.cat([model.user_embedding.weight, source]), 2)
        users.append(z[:NUM_USERS])
        items.append(z[NUM_USERS:])
    return users, items


def oracle(model: SLMRec, mask: bool) -> tuple[Tensor, Tensor, Tensor]:
    users, items = dense_views(model)
    fused = [
        torch.cat(parts, dim=1) @ layer.weight.t() + layer.bias
        for parts, layer in ((users, model.user_fusion), (items, model.item_fusion))
    ]
    pairs = list(zip(BATCH.user.tolist(), BATCH.pos_item.tolist(), strict=True))

    def contrast(score, same, taken) -> Tensor:
        total = torch.zeros((), dtype=torch.double)
        for b in pairs:
            if not taken(b):
                continue
            others = [
                c
                for c in pairs
                if c is not b and taken(c) and not (mask and same(b, c))
            ]
            logits = torch.stack([score(b, c) for c in [b, *others]])
            total = total + logits.logsumexp(0) - logits[0]
        return total / len(pairs)

    def cosine(b, c) -> Tensor:
        return F.cosine_similarity(fused[0][b[0]], fused[1][c[1]], dim=0) / 0.2

    loss = contrast(cosine, lambda b, c: b[0] == c[0] or b[1] == c[1], lambda b: True)
    anchor = items[0] @ model.anchor.weight.t()
    inner, outer = model.coarse['text']
    left = {'image': anchor, 'text': anchor @ inner.weight.t() @ outer.weight.t()}
    assert left['text'].size(1) == 3
    for m, name in enumerate(('image', 'text')):
        right = items[m + 1] @ model.partner[name].weight.t()
        table = left[name] @ right.t() / 0.7
        term = contrast(
            lambda b, c, table=table: table[b[1], c[1]],
            lambda b, c: b[1] == c[1],
            lambda b, name=name: bool(has(name)[b[1]]),
        )
        loss = loss + 0.3 * term
    return fused[0], fused[1], loss


@pytest.mark.parametrize('mask', [True, False])
def test_forward_loss_and_gradients_equal_the_dense_formulas(mask: bool) -> None:
    model = make(mask_duplicates=mask)
    user, item, loss = oracle(model, mask)
    torch.testing.assert_close(model.encode(DATA), (user, item), atol=1e-6, rtol=1e-5)
    assert_same_gradients(model, model.loss(DATA, BATCH), loss)


def test_masking_duplicates_lowers_the_loss() -> None:
    assert make().loss(DATA, BATCH) < make(mask_duplicates=False).loss(DATA, BATCH)
    distinct = pair_batch([3, 5, 0], [1, 2, 4], [0, 0, 0])
    masked, plain = make(), make(mask_duplicates=False)
    assert torch.equal(masked.loss(DATA, distinct), plain.loss(DATA, distinct))


def test_ranking_is_by_dot_or_cosine() -> None:
    dot, cosine = make(), make(ranking='cosine')
    for a, b in zip(dot.encode(DATA), cosine.encode(DATA), strict=True):
        torch.testing.assert_close(F.normalize(a, dim=1), b)
        assert not torch.allclose(a, b)
    assert torch.equal(dot.loss(DATA, BATCH), cosine.loss(DATA, BATCH))


def test_negatives_are_not_read() -> None:
    other = dataclasses.replace(BATCH, neg_item=BATCH.neg_item.flip(0))
    model = make()
    assert torch.equal(model.loss(DATA, BATCH), model.loss(DATA, other))


def test_any_number_of_modalities() -> None:
    one = SLMRec(NUM_USERS, NUM_ITEMS, {'text': 5}, 6).double()
    one.loss(DATA, BATCH).backward()
    assert all(p.grad is not None for p in one.parameters())
    data = DATA.clone()
    data['item'].x_audio = torch.randn(NUM_ITEMS, 7)
    three = SLMRec(NUM_USERS, NUM_ITEMS, {**DIMS, 'audio': 7}, 6).double()
    three.loss(data, BATCH).backward()
    assert all(bool((p.grad != 0).any()) for p in three.parameters())


def test_without_contrast_of_modalities() -> None:
    model = make(ssl_alpha=0.0)
    model.loss(DATA, BATCH).backward()
    dead = {n.split('.')[0] for n, p in model.named_parameters() if p.grad is None}
    assert dead == {'anchor', 'partner', 'coarse'}


def test_reads_the_graph_of_the_data() -> None:
    model = make()
    before, after = model.encode(DATA), model.encode(fold_in(DATA))
    assert not torch.allclose(before[0], after[0])


@pytest.mark.parametrize('ranking', ['dot', 'cosine'])
def test_learns_planted_structure(ranking: str) -> None:
    torch.manual_seed(0)
    dims = {'image': 16, 'text': 12}
    assert_learns(SLMRec(200, 100, dims, 16, ranking=ranking), planted())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'temperature': 0.0}, r"'temperature' must be positive \(got 0.0\)"),
        ({'ssl_alpha': -1}, r"'ssl_alpha' must be finite and not negative \(got -1\)"),
        ({'embedding_dim': 7}, r"'embedding_dim' must be even.*got 7"),
        ({'ranking': 'l2'}, r"'ranking' must be 'dot' or 'cosine' \(got 'l2'\)"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SLMRec(3, 3, DIMS, **options)


def test_bad_data() -> None:
    data = rec_data(NUM_USERS, NUM_ITEMS, modalities=DIMS, max_length=7)
    with pytest.raises(ValueError, match=r"no 'ui_adj'.*UserItemGraph"):
        make().encode(data)


def test_repr() -> None:
    model = SLMRec(7, 5, {'text': 3}, 8)
    assert repr(model) == "SLMRec(7, 5, {'text': 3}, 8, num_layers=3)"
