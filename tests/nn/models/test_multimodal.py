"""What all multimodal baselines keep to, and their features."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from hellm_pyg.data import PairBatch
from hellm_pyg.nn.models import BM3, FREEDOM, GRCN, LATTICE, VBPR, SLMRec
from hellm_pyg.nn.models.base import GraphRecommender
from hellm_pyg.nn.models.multimodal import (
    ItemFeatures,
    ProjectedFeatures,
    triple_loss,
)
from tests.nn.models.modalities import (
    BATCH,
    DATA,
    DIMS,
    NUM_ITEMS,
    NUM_USERS,
    WITHOUT,
    features,
    without_features,
)

MODELS = [BM3, FREEDOM, GRCN, LATTICE, VBPR, SLMRec]


def make(cls: type[GraphRecommender], **kwargs: object) -> GraphRecommender:
    torch.manual_seed(0)
    return cls(NUM_USERS, NUM_ITEMS, **{'feature_dims': DIMS, **kwargs})


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('cls', MODELS)
def test_missing_rows_never_give_nan(
    cls: type[GraphRecommender], dtype: torch.dtype
) -> None:
    data = copy.copy(DATA)
    data['item'].x_text = torch.full_like(DATA['item'].x_text, torch.nan)
    pairs = data['item', 'member_of', 'text_hyperedge']
    pairs.edge_index = torch.empty(2, 0, dtype=torch.long)
    for kwargs in ({}, {'feature_dims': {'text': 5}}):
        model = make(cls, **kwargs).to(dtype).train()
        model.on_epoch_start(data)
        loss = model.loss(data, BATCH)
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(bool(x.isfinite().all()) for x in (loss, *grads))
        model.eval()
        assert all(bool(x.isfinite().all()) for x in model.encode(data))


@pytest.mark.parametrize('cls', MODELS)
def test_a_width_out_of_range_is_named(cls: type[GraphRecommender]) -> None:
    for width in (0, -1):
        with pytest.raises(ValueError, match=rf"^'embedding_dim' .*\(got {width}\)"):
            make(cls, embedding_dim=width)


@pytest.mark.parametrize('cls', MODELS)
def test_half_precision_training_step(cls: type[GraphRecommender]) -> None:
    model = make(cls)
    model.on_epoch_start(DATA)
    model.eval()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model.loss(DATA, BATCH)
    loss.backward()
    assert loss.item() == pytest.approx(model.loss(DATA, BATCH).item(), rel=0.03)


@pytest.mark.parametrize('cls', MODELS)
def test_the_state_fits_a_new_model(cls: type[GraphRecommender]) -> None:
    model, other = make(cls), make(cls)
    model.on_epoch_start(DATA)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    other.load_state_dict(model.state_dict())
    for training in (True, False):
        model.train(training)
        other.train(training)
        torch.manual_seed(0)
        expected = model.loss(DATA, BATCH)
        torch.manual_seed(0)
        assert torch.equal(other.loss(DATA, BATCH), expected)
    out = copy.deepcopy(model).embeddings(DATA)
    assert torch.equal(out['item'], model.encode(DATA)[1])
    assert out['user'].size(0) == NUM_USERS


@pytest.mark.parametrize('cls', MODELS)
@pytest.mark.parametrize('name', ['clip.v1', 'items', ''])
def test_a_name_that_torch_cannot_keep_is_refused(
    cls: type[GraphRecommender], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"'feature_dims' needs names .*{name!r}"):
        make(cls, feature_dims={name: 3})


@pytest.mark.parametrize('cls', MODELS)
def test_triples_of_others_are_refused(cls: type[GraphRecommender]) -> None:
    model = make(cls)
    for name, size in (('user', NUM_USERS), ('pos_item', NUM_ITEMS)):
        wrong = replace(BATCH, **{name: getattr(BATCH, name).clone().fill_(size)})
        match = rf"'batch.{name}' needs to lie in \[0, {size}\)"
        with pytest.raises(ValueError, match=match):
            model.loss(DATA, wrong)
    none = PairBatch(*(torch.empty(0, dtype=torch.long),) * 3)
    with pytest.raises(ValueError, match=r"'batch' needs at least one triple"):
        model.loss(DATA, none)


def test_missing_rows_are_zero_and_learned_where_trainable() -> None:
    fixed = ItemFeatures(NUM_ITEMS, DIMS)
    assert list(fixed.dims) == ['image', 'text']
    assert not list(fixed.parameters())
    torch.testing.assert_close(fixed(DATA, 'text').double(), features('text'))
    missing = (~fixed.present(DATA, 'text')).nonzero().view(-1).tolist()
    assert missing == WITHOUT['text']
    trained = ItemFeatures(NUM_ITEMS, DIMS, trainable=True)
    assert torch.equal(trained(DATA, 'text'), fixed(DATA, 'text'))
    with torch.no_grad():
        trained.offset['text'] += 1
    index = torch.tensor([9, 0, 9])
    expected = fixed(DATA, 'text')[index] + 1
    assert torch.equal(trained(DATA, 'text', index), expected)
    trained.reset_parameters()
    assert torch.equal(trained(DATA, 'text', index), fixed(DATA, 'text', index))


def test_features_follow_the_data() -> None:
    model = ItemFeatures(NUM_ITEMS, {'text': 5})
    first = model(DATA, 'text')
    assert model(DATA, 'text') is first
    other = copy.copy(DATA)
    other['item'].x_text = 2 * DATA['item'].x_text
    assert torch.equal(model(other, 'text'), 2 * first)
    other['item'].x_text[WITHOUT['text']] = 7.0
    assert bool((model(other, 'text')[WITHOUT['text']] == 7).all())
    assert bool(model.present(other, 'text').all())
    with pytest.raises(ValueError, match=r"'x_text' of 5 channels .*got None"):
        model(without_features(DATA, 'text'), 'text')


def test_features_that_do_not_fit_are_refused() -> None:
    data, model = copy.copy(DATA), ItemFeatures(NUM_ITEMS, DIMS)
    x = DATA['item'].x_text
    data['item'].num_nodes = NUM_ITEMS
    for wrong, message in (
        (x[1:], r"'x_text' needs a row for each .*\[11, F\] \(got \[10, 5\]\)"),
        (x[0], r"'x_text' needs a row for each .*\[11, F\] \(got \[5\]\)"),
        (x[:, 1:], r"'x_text' of 5 channels .*got shape \[11, 4\]"),
        (x.clone().fill_diagonal_(torch.inf), r"'x_text' .*finite.* 5 rows"),
    ):
        data['item'].x_text = wrong
        with pytest.raises(ValueError, match=message):
            model(data, 'text')


def test_projection_normalises_on_demand() -> None:
    model = ProjectedFeatures(NUM_ITEMS, DIMS, 3)
    model.reset_parameters()
    x, linear = features('image').float(), model.linear['image']
    torch.testing.assert_close(model.project(DATA, 'image'), x @ linear.weight.t())
    out = model.project(DATA, 'image', torch.tensor([4]), normalize=True)
    torch.testing.assert_close(out[0], linear.weight @ (x[4] / x[4].norm()))


def test_triples_average_their_negatives() -> None:
    user, pos, neg = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 2, 3)
    out = triple_loss(user, pos, neg)
    for b in range(4):
        margins = [user[b] @ (pos[b] - n) for n in neg[b]]
        expected = -sum(torch.log(torch.sigmoid(m)) for m in margins) / 2
        torch.testing.assert_close(out[b], expected)
