"""HeLLMPre against the dense formulas, and what its switches remove."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import PairBatch
from hellm_pyg.data.loader import PairLoader
from hellm_pyg.data.split import fold_in
from hellm_pyg.datasets.fake import FakeRecDataset
from hellm_pyg.evaluation import evaluate
from hellm_pyg.nn.models import HeLLMPre, LightGCN, Popularity
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph
from tests.builders import rec_data
from tests.nn.models.batches import pair_batch, train

NUM_USERS, NUM_ITEMS = 14, 11
BATCH = pair_batch([3, 5, 3, 0], [1, 2, 4, 2], [0, 9, 9, 1])


def add_hyperedges(data: HeteroData, name: str, seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_items = data['item'].num_nodes
    member = torch.rand(num_items, num_items, generator=generator) < density
    member[seed] = False  # an item without this modality
    data[f'{name}_hyperedge'].num_nodes = num_items
    data['item', 'member_of', f'{name}_hyperedge'].edge_index = EdgeIndex(
        member.nonzero().t().contiguous(),
        sparse_size=(num_items, num_items),
        sort_order='row',
    ).fill_cache_()


def make_data(num_users: int = NUM_USERS, num_items: int = NUM_ITEMS) -> HeteroData:
    data = rec_data(num_users, num_items, max_length=7)
    data = UserItemGraph()(LeaveOneOut()(data))
    add_hyperedges(data, 'text', 1, 0.3)
    add_hyperedges(data, 'image', 2, 0.2)
    return data


DATA = make_data()


def make(seed: int = 0, **kwargs: object) -> HeLLMPre:
    torch.manual_seed(seed)
    options: dict = {'embedding_dim': 6, 'alpha': 0.4, 'beta': 0.3, 'lambda_reg': 0.2}
    return HeLLMPre(NUM_USERS, NUM_ITEMS, **{**options, **kwargs}).double()


# The oracle: dense matrices and the formulas of the article, nothing shared.


def dense(edge_index: Tensor, size: tuple[int, int]) -> Tensor:
    out = torch.zeros(size, dtype=torch.double)
    out[tuple(edge_index.as_tensor())] = 1
    return out


def inverse(degree: Tensor, power: float = 1.0) -> Tensor:
    return torch.where(degree > 0, degree.clamp(min=1e-30).pow(-power), 0.0)


def operator(H: Tensor, weight: Tensor, normalization: str) -> Tensor:
    A = H @ weight.diag() @ H.t()
    if normalization == 'clique_rw':
        A = A - A.diag().diag()
        return inverse(A.sum(dim=1)).diag() @ A
    if normalization == 'clique_sym':
        root = inverse(A.sum(dim=1), 0.5).diag()
        return root @ A @ root
    inner = H @ (weight * inverse(H.sum(dim=0))).diag() @ H.t()
    if normalization == 'rw':
        return inverse(H @ weight).diag() @ inner
    root = inverse(H @ weight, 0.5).diag()
    return root @ inner @ root


def contrast(
    z1: Tensor,
    z2: Tensor,
    index: Tensor,
    scope: str | int,
    symmetric: bool,
    intra: bool,
) -> Tensor:
    if symmetric:
        one = contrast(z1, z2, index, scope, False, intra)
        return (one + contrast(z2, z1, index, scope, False, intra)) / 2
    nodes = list(range(len(z1)))
    batch = sorted(set(index.tolist()))
    anchors = nodes if scope == 'full' else batch
    others = batch if scope == 'batch' else nodes
    c = torch.exp(F.normalize(z1) @ F.normalize(torch.cat([z2, z1])).t() / 0.5)
    losses = []
    for n in anchors:
        total = c[n, n] + sum(c[n, m] for m in others if m != n)
        if intra:
            total = total + sum(c[n, len(z1) + m] for m in others if m != n)
        losses.append(-torch.log(c[n, n] / total))
    return torch.stack(losses).mean()


def oracle(
    model: HeLLMPre,
    layers: tuple[int, int, int] = (2, 3, 2),
    normalizations: tuple[str, str] = ('clique_rw', 'clique_sym'),
    scope: str | int = 'batch',
    symmetric: bool = False,
    intra: bool = True,
    anchor: str = 'fused',
) -> tuple[Tensor, Tensor, Tensor]:
    R = dense(DATA['user', 'interacts', 'item'].edge_index, (NUM_USERS, NUM_ITEMS))
    A = torch.zeros(NUM_USERS + NUM_ITEMS, NUM_USERS + NUM_ITEMS, dtype=torch.double)
    A[:NUM_USERS, NUM_USERS:], A[NUM_USERS:, :NUM_USERS] = R, R.t()
    root = inverse(A.sum(dim=1), 0.5).diag()
    x = model.bipartite.embedding.weight
    powers = [x]
    for _ in range(layers[0]):
        powers.append(root @ A @ root @ powers[-1])
    z = torch.stack(powers).mean(dim=0)
    z_user, z_item = z[:NUM_USERS], z[NUM_USERS:]

    H = torch.cat(
        [
            dense(
                DATA['item', 'member_of', f'{m}_hyperedge'].edge_index, (NUM_ITEMS,) * 2
            )
            for m in ('image', 'text')
        ],
        dim=1,
    )
    weight_user = torch.ones(NUM_ITEMS, dtype=torch.double)
    weight_item = torch.ones(2 * NUM_ITEMS, dtype=torch.double)
    if model.user_log_weight is not None:
        weight_user = torch.exp(model.user_log_weight)
        logs = [model.item_log_weight[m] for m in ('image', 'text')]
        weight_item = torch.exp(torch.cat(logs))
    h_user, h_item = model.user_embedding.weight, model.item_embedding.weight
    for _ in range(layers[1]):
        h_user = operator(R, weight_user, normalizations[0]) @ h_user
    for _ in range(layers[2]):
        h_item = operator(H, weight_item, normalizations[1]) @ h_item

    fused = []
    for low, high in ((z_user, h_user), (z_item, h_item)):
        norm = high.pow(2).sum(dim=1, keepdim=True).sqrt()
        fused.append(low + high * inverse(norm))
    loss = torch.zeros((), dtype=torch.double)
    for u, i, j in zip(BATCH.user, BATCH.pos_item, BATCH.neg_item, strict=True):
        difference = fused[0][u] @ fused[1][i] - fused[0][u] @ fused[1][j]
        norms = [v @ v for v in (fused[0][u], fused[1][i], fused[1][j])]
        loss = loss - torch.log(torch.sigmoid(difference)) + 0.2 / 2 * sum(norms)
    loss = loss / len(BATCH.user)
    views = fused if anchor == 'fused' else [z_user, z_item]
    for factor, a, h, index in (
        (0.4, views[0], h_user, BATCH.user),
        (0.3, views[1], h_item, BATCH.pos_item),
    ):
        loss = loss + factor * contrast(a, h, index, scope, symmetric, intra)
    return fused[0], fused[1], loss


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({}, {}),
        (
            {'num_layers': 1, 'num_user_layers': 1, 'num_item_layers': 3},
            {'layers': (1, 1, 3)},
        ),
        (
            {'normalization_user': 'hgnn', 'normalization_item': 'rw'},
            {'normalizations': ('hgnn', 'rw')},
        ),
        (
            {'normalization_user': 'clique_sym', 'normalization_item': 'clique_rw'},
            {'normalizations': ('clique_sym', 'clique_rw')},
        ),
        ({'scope': 'full'}, {'scope': 'full'}),
        # As many negatives as users (and more than items): all of them.
        ({'scope': NUM_USERS}, {'scope': NUM_USERS}),
        ({'symmetric': True}, {'symmetric': True}),
        ({'intra_view': False}, {'intra': False}),
        ({'contrast_anchor': 'bipartite'}, {'anchor': 'bipartite'}),
        ({'trainable_hyperedge_weight': True, 'modalities': ['image', 'text']}, {}),
    ],
    ids=lambda value: '-'.join(map(str, value.values())) or 'default',
)
def test_forward_loss_and_gradients_equal_the_dense_formulas(
    options: dict, expected: dict
) -> None:
    model = make(**options)
    if model.user_log_weight is not None:
        for weight in (model.user_log_weight, *model.item_log_weight.values()):
            torch.nn.init.normal_(weight, std=0.5)
    user, item, loss = oracle(model, **expected)
    out = model.encode(DATA)
    torch.testing.assert_close(out[0], user, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out[1], item, atol=1e-6, rtol=1e-5)
    total = model.loss(DATA, BATCH)
    torch.testing.assert_close(total, loss, atol=1e-6, rtol=1e-5)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(total, parameters),
        torch.autograd.grad(loss, parameters),
        atol=1e-5,
        rtol=1e-4,
    )


def ranking(model: HeLLMPre | LightGCN, lambda_reg: float) -> Tensor:
    return model.ranking_loss(model.encode(DATA), BATCH, lambda_reg)


def test_without_a_hypergraph_there_is_neither_fusion_nor_contrast() -> None:
    full = make()
    for switch, side, other in (('u2u', 0, 'beta'), ('i2i', 1, 'alpha')):
        model = make(**{switch: False})
        missing = {'u2u': 'user_embedding', 'i2i': 'item_embedding'}[switch]
        assert f'{missing}.weight' not in model.state_dict()
        state = {k: v for k, v in full.state_dict().items() if missing not in k}
        model.load_state_dict(state)
        plain = model.bipartite.propagate(DATA)
        out, whole = model.encode(DATA), full.encode(DATA)
        assert torch.equal(out[side], plain[side])
        assert not torch.allclose(whole[side], plain[side])
        assert torch.equal(out[1 - side], whole[1 - side])
        term = model.loss(DATA, BATCH) - ranking(model, 0.1)
        setattr(model, other, 0.0)  # only the other side's contrast was left
        assert term > 0.1
        torch.testing.assert_close(model.loss(DATA, BATCH), ranking(model, 0.1))


def test_without_both_hypergraphs_it_is_lightgcn() -> None:
    model = make(u2u=False, i2i=False)
    other = LightGCN(NUM_USERS, NUM_ITEMS, 6, num_layers=2).double()
    other.load_state_dict(model.state_dict())
    for out, expected in zip(model.encode(DATA), other.encode(DATA), strict=True):
        assert torch.equal(out, expected)
    torch.testing.assert_close(model.loss(DATA, BATCH), ranking(other, 0.1))


def test_without_contrast_the_fusion_stays() -> None:
    model, full = make(contrastive=False), make()
    for out, expected in zip(model.encode(DATA), full.encode(DATA), strict=True):
        assert torch.equal(out, expected)
    assert list(model.state_dict()) == list(full.state_dict())
    torch.testing.assert_close(model.loss(DATA, BATCH), ranking(full, 0.1))
    assert full.loss(DATA, BATCH) > ranking(full, 0.1) + 0.1


@pytest.mark.parametrize('contrast_anchor', ['fused', 'bipartite'])
@pytest.mark.parametrize('contrastive', [True, False])
def test_nodes_of_the_batch_are_all_that_counts(
    contrastive: bool, contrast_anchor: str
) -> None:
    model = make(contrastive=contrastive, contrast_anchor=contrast_anchor)
    negatives = torch.stack([BATCH.neg_item, BATCH.neg_item.flip(0)], dim=1)
    batch = PairBatch(BATCH.user, BATCH.pos_item, negatives)
    expected = model.ranking_loss(model.encode(DATA), batch, 0.1)
    if contrastive:
        for weight, views, index in zip(
            (model.alpha, model.beta),
            model.views(DATA),
            (batch.user, batch.pos_item),
            strict=True,
        ):
            anchor = getattr(views, contrast_anchor)
            term = model.contrast(anchor, views.hypergraph, index)
            expected = expected + weight * term
    torch.testing.assert_close(model.loss(DATA, batch), expected)


def test_one_weight_of_zero_removes_one_term() -> None:
    whole = make().loss(DATA, BATCH)
    base = make(contrastive=False).loss(DATA, BATCH)
    user = make(beta=0).loss(DATA, BATCH) - base
    item = make(alpha=0).loss(DATA, BATCH) - base
    assert min(user, item) > 0.1
    torch.testing.assert_close(base + user + item, whole)


def test_contrast_starts_at_its_known_level() -> None:
    # For spread-out vectors, ln(2 N) minus the positive's cosine over tau.
    torch.manual_seed(0)
    num_users, num_items = 400, 300
    data = rec_data(num_users, num_items)
    data = UserItemGraph()(LeaveOneOut()(data))
    add_hyperedges(data, 'text', 0, 0.02)
    for size, weights in ((num_users, (1.0, 0.0)), (num_items, (0.0, 1.0))):
        model = HeLLMPre(
            num_users,
            num_items,
            num_user_layers=0,
            num_item_layers=0,
            alpha=weights[0],
            beta=weights[1],
            scope='full',
        )
        term = model.loss(data, BATCH)
        model.contrastive = False
        term = term - model.loss(data, BATCH)
        views = model.views(data)[0 if weights[0] else 1]
        cosine = F.cosine_similarity(views.fused, views.hypergraph).mean()
        assert cosine > 0.9
        level = math.log(2 * size) - cosine.item() / 0.5
        assert term.item() == pytest.approx(level, abs=0.06)


def test_hyperedge_weights_start_at_one_and_are_trained() -> None:
    fixed = make()
    model = make(trainable_hyperedge_weight=True, modalities=['image', 'text'])
    model.load_state_dict(fixed.state_dict(), strict=False)
    loss = model.loss(DATA, BATCH)
    torch.testing.assert_close(loss, fixed.loss(DATA, BATCH))
    loss.backward()
    weights = [model.user_log_weight, *model.item_log_weight.values()]
    assert [weight.numel() for weight in weights] == [NUM_ITEMS] * 3
    assert all(bool(weight.grad.abs().sum() > 0) for weight in weights)


def test_every_parameter_is_used() -> None:
    for options in ({}, {'u2u': False}, {'i2i': False}, {'contrastive': False}):
        model = make(**options)
        model.loss(DATA, BATCH).backward()
        assert all(p.grad is not None for p in model.parameters())


def test_modalities_choose_hypergraphs() -> None:
    both = make()
    text = make(modalities=['text'])
    assert both.item_incidence(DATA).get_sparse_size(1) == 2 * NUM_ITEMS
    incidence = text.item_incidence(DATA)
    expected = DATA['item', 'member_of', 'text_hyperedge'].edge_index
    assert torch.equal(incidence.as_tensor(), expected.as_tensor())
    swapped = make(modalities=['text', 'image'])
    torch.testing.assert_close(swapped.encode(DATA), both.encode(DATA))
    assert not torch.allclose(text.encode(DATA)[1], both.encode(DATA)[1])


def test_plain_and_unsorted_incidences_are_read_too() -> None:
    data = copy.copy(DATA)
    for name in ('text', 'image'):
        store = data['item', 'member_of', f'{name}_hyperedge']
        plain = store.edge_index.as_tensor()
        store.edge_index = plain[:, torch.randperm(plain.size(1))]
    torch.testing.assert_close(make().encode(data), make().encode(DATA))


def test_the_incidence_is_built_once_and_never_stale() -> None:
    model, data = make(), make_data()
    first = model.item_incidence(data)
    assert model.item_incidence(data) is first
    assert model.item_incidence(fold_in(data)) is first
    add_hyperedges(data, 'text', 3, 0.5)
    second = model.item_incidence(data)
    assert second.size(1) != first.size(1)
    edges = data['item', 'member_of', 'text_hyperedge'].edge_index
    edges.as_tensor()[1] = edges.as_tensor()[1].flip(0)
    third = model.item_incidence(data)
    assert not torch.equal(third.as_tensor(), second.as_tensor())
    torch.testing.assert_close(model.encode(data), make().encode(data))
    add_hyperedges(data, 'audio', 4, 0.1)
    assert model.item_incidence(data).get_sparse_size(1) == 3 * NUM_ITEMS


def test_an_evaluation_may_come_before_training() -> None:
    model = make()
    with torch.inference_mode():
        expected = model.encode(DATA)
    torch.testing.assert_close(model.encode(DATA), tuple(x.clone() for x in expected))
    model.loss(DATA, BATCH).backward()


def test_nodes_without_neighbours_in_half_precision() -> None:
    data = make_data()
    for name in ('text', 'image'):
        add_hyperedges(data, name, 1, 0.3)  # item 1 is in none
    model = make().half()
    assert not bool(model.views(data)[1].hypergraph[1].any())
    model.loss(data, BATCH).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    torch.testing.assert_close(
        tuple(x.double() for x in model.encode(data)),
        model.double().encode(data),
        atol=0.01,
        rtol=0,
    )


def test_embeddings_are_the_fused_vectors() -> None:
    model = make()
    out = model.embeddings(DATA)
    assert torch.equal(out['user'], model.encode(DATA)[0])
    assert torch.equal(out['item'], model.encode(DATA)[1])


def test_beats_popularity() -> None:
    data = FakeRecDataset(num_users=150)[0]
    for transform in (LeaveOneOut(), UserItemGraph(), KNNHyperedges(k=5)):
        data = transform(data)
    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    popularity = Popularity(num_users, num_items)
    popularity.fit(data)
    torch.manual_seed(0)
    model = HeLLMPre(num_users, num_items, 16)
    train(model, data, PairLoader(data, 128), 8)
    floor = evaluate(popularity, data, 'test').metrics['N@10']
    assert evaluate(model, data, 'test').metrics['N@10'] > 1.5 * floor


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'alpha': -1}, r"'alpha' must be finite and not negative \(got -1\)"),
        ({'num_item_layers': -1}, r"'num_item_layers' must be finite and not negative"),
        ({'contrast_anchor': 'both'}, r"'contrast_anchor'.*got 'both'"),
        ({'trainable_hyperedge_weight': True}, r'got modalities=None'),
        ({'scope': 'some'}, r"'scope'"),
        ({'normalization_user': 'gcn'}, r"'normalization_user' .*got 'gcn'"),
        ({'normalization_item': 'gcn'}, r"'normalization_item' .*got 'gcn'"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_data() -> None:
    data = make_data()
    with pytest.raises(ValueError, match=r"\['audio'\] \(got \['text', 'image'\]"):
        make(modalities=['audio']).encode(data)
    data['text_hyperedge'].num_nodes = NUM_ITEMS + 1
    options = {'trainable_hyperedge_weight': True, 'modalities': ['text']}
    with pytest.raises(ValueError, match=r"'trainable_hyperedge_weight' expects"):
        make(**options).encode(data)
    for name in ('text', 'image'):
        del data['item', 'member_of', f'{name}_hyperedge']
    with pytest.raises(ValueError, match=r'needs item hyperedges of some modality'):
        make().encode(data)
    assert len(make(i2i=False).encode(data)) == 2
