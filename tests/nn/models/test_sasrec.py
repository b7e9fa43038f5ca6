"""SASRec: independence of batch and padding, causality, and its three losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.data.loader import SequenceLoader
from hellm_pyg.datasets.fake import FakeRecDataset
from hellm_pyg.evaluation import evaluate
from hellm_pyg.nn.models import Popularity, SASRec
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut
from tests.nn.models.batches import item_data, sequence_batch, train
from tests.nn.models.lessons import assert_learns, lesson

NUM_ITEMS = 13
DATA = item_data(NUM_ITEMS)
HISTORIES = [[3, 1, 4], [5], [9, 2, 6, 5, 3, 8, 7], [0, 12]]

histories = st.lists(
    st.lists(st.integers(0, NUM_ITEMS - 1), max_size=9), min_size=1, max_size=6
)


def make(loss: str = 'softmax', seed: int = 0, **kwargs: object) -> SASRec:
    torch.manual_seed(seed)
    options: dict = {'embedding_dim': 8, 'num_heads': 2, 'max_len': 6, 'dropout': 0.0}
    model = SASRec(NUM_ITEMS, loss=loss, **{**options, **kwargs})
    for parameter in model.parameters():  # large enough that all parts matter
        torch.nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


def scores(model: SASRec, batch: SequenceBatch) -> Tensor:
    return model.score(model.encode(DATA), batch)


def sampled(num_targets: int, num_neg: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_targets)
    return torch.randint(NUM_ITEMS, (num_targets, num_neg), generator=generator)


@given(rows=histories)
@settings(max_examples=12, deadline=None)
def test_a_row_depends_on_itself_alone(rows: list[list[int]]) -> None:
    model = make()
    together = scores(model, sequence_batch(rows))
    alone = torch.cat([scores(model, sequence_batch([row])) for row in rows])
    torch.testing.assert_close(together, alone)
    empty = torch.tensor([not row for row in rows])
    assert torch.equal(together[empty], torch.zeros_like(together[empty]))
    assert bool((together[~empty] != 0).any(dim=1).all())


@given(rows=histories)
@settings(max_examples=12, deadline=None)
def test_only_the_last_items_count(rows: list[list[int]]) -> None:
    model = make(max_len=4)
    expected = scores(model, sequence_batch([row[-4:] for row in rows]))
    torch.testing.assert_close(scores(model, sequence_batch(rows)), expected)


def test_order_matters() -> None:
    out = scores(make(), sequence_batch([[1, 2, 3], [2, 1, 3]]))
    assert not torch.allclose(out[0], out[1])


@pytest.mark.parametrize('loss', ['softmax', 'sampled_softmax', 'bce'])
def test_all_positions_equal_one_row_a_prefix(loss: str) -> None:
    # No position sees later items, and none notices how many follow.
    model = make(loss, max_len=7)
    rows = [row for row in HISTORIES if len(row) > 1]
    target = [item for row in rows for item in row[1:]]
    negative = sampled(len(target), 1 if loss == 'bce' else 3)
    every = sequence_batch([row[:-1] for row in rows], target, negative)
    prefixes = [row[:t] for row in rows for t in range(1, len(row))]
    each = sequence_batch(prefixes, target, negative)
    torch.testing.assert_close(model.loss(DATA, every), model.loss(DATA, each))


@pytest.mark.parametrize('max_len', [3, 9])
def test_queries_of_all_targets_at_once(max_len: int) -> None:
    model = make(max_len=max_len)
    every = sequence_batch([[1, 2, 3, 4], [5, 6]], [2, 3, 4, 7, 6, 8])
    # What lies before the last 3 items is not read.
    rows = [[2], [2, 3], [2, 3, 4]] if max_len == 3 else [[1], [1, 2], [1, 2, 3]]
    rows += [[1, 2, 3, 4]] * (max_len == 9) + [[5], [5, 6]]
    query = model.queries(model.encode(DATA), every)
    found = model.score_queries(model.encode(DATA), query)
    torch.testing.assert_close(found, scores(model, sequence_batch(rows)))
    last = sequence_batch([[1, 2, 3, 4], [5, 6]], [7, 8])
    query = model.queries(model.encode(DATA), last)
    torch.testing.assert_close(
        model.score_queries(model.encode(DATA), query), scores(model, last)
    )


def test_one_block_against_the_formulas() -> None:
    model = make(num_layers=1, num_heads=2)
    state = model.state_dict()
    row = [4, 4, 9, 0, 2]

    def norm(x: Tensor, name: str) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        std = (x - mean).pow(2).mean(dim=-1, keepdim=True).add(1e-5).sqrt()
        return (x - mean) / std * state[f'{name}.weight'] + state[f'{name}.bias']

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f'{name}.weight'].t() + state[f'{name}.bias']

    table = state['item_embedding.weight']
    x = math.sqrt(8) * table[row] + state['position_embedding.weight'][: len(row)]
    y = norm(x, 'layers.0.norm1')
    mixed = (
        y @ state['layers.0.self_attn.in_proj_weight'].t()
        + state['layers.0.self_attn.in_proj_bias']
    )
    q, k, v = (part.view(5, 2, 4).transpose(0, 1) for part in mixed.split(8, dim=1))
    logits = q @ k.transpose(1, 2) / 2
    later = torch.ones(5, 5).triu(1).bool()
    heads = logits.masked_fill(later, -torch.inf).softmax(dim=-1) @ v
    x = x + linear(heads.transpose(0, 1).reshape(5, 8), 'layers.0.self_attn.out_proj')
    y = linear(norm(x, 'layers.0.norm2'), 'layers.0.linear1')
    y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
    x = norm(x + linear(y, 'layers.0.linear2'), 'norm')
    expected = x[-1] @ table.t()
    torch.testing.assert_close(scores(model, sequence_batch([row]))[0], expected)


@pytest.mark.parametrize('num_heads', [1, 2])  # an even number takes the fast path
def test_the_fast_path_changes_nothing(num_heads: int) -> None:
    model = make(num_heads=num_heads)
    batch = sequence_batch(HISTORIES)
    slow = scores(model.train(), batch)
    torch.testing.assert_close(scores(model.eval(), batch), slow)
    with torch.no_grad():
        torch.testing.assert_close(scores(model, batch), slow)
    with torch.inference_mode():
        torch.testing.assert_close(scores(model, batch), slow)


def naive_loss(model: SASRec, batch: SequenceBatch) -> Tensor:
    """From the scores of all items, for one target a row."""
    score, loss = scores(model, batch), model.objective
    assert batch.target is not None
    if loss == 'softmax':
        return F.cross_entropy(score, batch.target)
    assert batch.neg_item is not None
    positive = score.gather(1, batch.target.unsqueeze(1))
    negative = score.gather(1, batch.neg_item)
    if loss == 'bce':
        ones = torch.ones_like(positive)
        return F.binary_cross_entropy_with_logits(
            positive, ones
        ) + F.binary_cross_entropy_with_logits(negative, 0 * ones)
    hit = batch.neg_item == batch.target.unsqueeze(1)
    negative = negative.masked_fill(hit, -torch.inf)
    return (torch.cat([positive, negative], 1).logsumexp(1) - positive[:, 0]).mean()


@pytest.mark.parametrize('chunk_size', [1, 3, 100])
@pytest.mark.parametrize('loss', ['softmax', 'sampled_softmax', 'bce'])
def test_losses_and_gradients_equal_the_naive_ones(loss: str, chunk_size: int) -> None:
    model = make(loss, chunk_size=chunk_size)
    negative = sampled(4, 1 if loss == 'bce' else 5)
    negative[2, 0] = 8  # of loss='sampled_softmax', an accidental hit
    batch = sequence_batch(HISTORIES, [2, 0, 8, 1], negative)
    parameters = list(model.parameters())
    out, expected = model.loss(DATA, batch), naive_loss(model, batch)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out, parameters), torch.autograd.grad(expected, parameters)
    )


@pytest.mark.parametrize('direction', ['row', 'col'])
def test_neighbors_share_the_weight_of_a_target(direction: str) -> None:
    data = item_data(NUM_ITEMS)
    generator = torch.Generator().manual_seed(0)
    features = {m: torch.randn(NUM_ITEMS, 4, generator=generator) for m in 'ab'}
    features['b'][8] = torch.nan
    wanted = torch.zeros(4, NUM_ITEMS, dtype=torch.float64)
    targets = [2, 0, 8, 1]
    for name, x in features.items():
        data['item'][f'x_{name}'] = x
        cosine = F.normalize(x, dim=1) @ F.normalize(x, dim=1).t()
        cosine = cosine.nan_to_num(-2).fill_diagonal_(-2)
        for row, target in enumerate(targets):
            near = cosine[target].topk(2).indices.tolist()
            if name == 'b' and target == 8:  # lacks it, and keeps the weight
                near = [8, 8]
            for item in near:
                wanted[row, item] += 0.4 / 4
    wanted[range(4), targets] += 0.6
    data = KNNHyperedges(3, direction=direction)(data)
    model = make(smoothing=0.4, modalities=['a', 'b'], max_len=9)
    batch = sequence_batch(HISTORIES, targets)
    expected = F.cross_entropy(scores(model, batch), wanted)
    torch.testing.assert_close(model.loss(data, batch), expected)


@pytest.mark.parametrize('every', [True, False])
@pytest.mark.parametrize('max_len', [2, 50])
def test_seen_items_need_not_compete(every: bool, max_len: int) -> None:
    model = make(candidates='unseen', max_len=max_len)
    rows, targets = [[1, 2, 3], [4, 5]], [2, 3, 6, 5, 7] if every else [6, 1]
    histories = [[1], [1, 2], [1, 2, 3], [4], [4, 5]] if every else rows
    kept, inputs = range(len(histories)), [history[-max_len:] for history in histories]
    if every and max_len == 2:  # the window of row 0 starts at its second item
        kept, inputs[1] = range(1, len(histories)), [2]
    logits = scores(model, sequence_batch(inputs))
    terms = []
    for n in kept:
        left = [
            i for i in range(logits.size(1)) if i not in histories[n] or i == targets[n]
        ]
        terms.append(logits[n, left].logsumexp(0) - logits[n, targets[n]])
    out = model.loss(DATA, sequence_batch(rows, targets))
    torch.testing.assert_close(out, torch.stack(terms).mean())


@pytest.mark.parametrize('smoothing', [0.0, 0.4])
def test_a_teacher_shares_the_weight_of_a_target(smoothing: float) -> None:
    options: dict = {'max_len': 2}
    data = DATA
    if smoothing:
        data = item_data(NUM_ITEMS)
        data['item'].x_text = torch.randn(NUM_ITEMS, 4)
        data = KNNHyperedges(3)(data)
        options |= {'smoothing': smoothing, 'modalities': ['text']}
    model = make(**options)
    every = sequence_batch([[1, 2, 3], [4, 5]], [2, 3, 6, 5, 7])
    seen = sequence_batch([[2], [2, 3], [4], [4, 5]])
    assert_learns(
        lambda soft: model.loss(data, every, soft),
        scores(model, seen),
        kept=[1, 2, 3, 4],  # the oldest target lies before the window
        num_targets=5,
    )
    rows = sequence_batch([[1, 2, 3], [], [4, 5]], [6, 1, 7])
    assert_learns(lambda soft: model.loss(data, rows, soft), scores(model, rows))


@pytest.mark.parametrize('loss', ['sampled_softmax', 'bce'])
def test_other_losses_have_no_teacher(loss: str) -> None:
    batch = sequence_batch([[1, 2]], [3], sampled(1, 1))
    with pytest.raises(ValueError, match=r"'soft' belongs to loss='softmax'"):
        make(loss).loss(DATA, batch, lesson(1, NUM_ITEMS, 0.5)[0])


def test_losses_skip_targets_beyond_the_window() -> None:
    for loss in ('softmax', 'bce'):
        model = make(loss, max_len=2)
        negative = sampled(5, 1)
        long = sequence_batch([[1, 2, 3], [4, 5]], [2, 3, 6, 5, 7], negative)
        cut = sequence_batch([[2, 3], [4, 5]], [3, 6, 5, 7], negative[1:])
        torch.testing.assert_close(model.loss(DATA, long), model.loss(DATA, cut))


@pytest.mark.parametrize('loss', ['softmax', 'sampled_softmax', 'bce'])
def test_no_targets_have_no_loss(loss: str) -> None:
    none = torch.empty(0, dtype=torch.long)
    batch = SequenceBatch(none, none, none, none, none.view(0, 1))
    assert make(loss=loss).loss(DATA, batch) == 0


def test_a_history_may_be_empty_in_the_loss_of_rows() -> None:
    model = make()
    loss = model.loss(DATA, sequence_batch([[], [1, 2]], [3, 4]))
    rest = model.loss(DATA, sequence_batch([[1, 2]], [4]))
    torch.testing.assert_close(loss, (rest + math.log(NUM_ITEMS)) / 2)
    nothing = scores(model, sequence_batch([[], []]))
    assert torch.equal(nothing, torch.zeros(2, NUM_ITEMS, dtype=torch.double))


def test_dropout_is_off_in_evaluation() -> None:
    model = make(dropout=0.5)
    batch = sequence_batch(HISTORIES)
    assert torch.equal(scores(model, batch), scores(model, batch))
    model.train()
    assert not torch.equal(scores(model, batch), scores(model, batch))


def test_half_precision_training_step() -> None:
    for loss, num_neg in (('softmax', 1), ('sampled_softmax', 3), ('bce', 1)):
        model = make(loss).float()
        batch = sequence_batch(HISTORIES, [2, 0, 8, 1], sampled(4, num_neg))
        with torch.autocast('cpu', torch.bfloat16):
            out = model.loss(DATA, batch)
        out.backward()
        plain = model.loss(DATA, batch)
        assert out.item() == pytest.approx(plain.item(), rel=0.03)
        assert all(p.grad is not None for p in model.parameters())


def test_embeddings_are_the_table() -> None:
    model = make()
    out = model.embeddings(DATA)
    assert set(out) == {'item'}
    assert torch.equal(out['item'], model.item_embedding.weight)
    assert not out['item'].requires_grad


@pytest.mark.parametrize('loss', ['softmax', 'sampled_softmax', 'bce'])
def test_learns_a_planted_order(loss: str) -> None:
    # Item i is followed by i + 2 or i + 5, depending on the item before it.
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(32):
        row = torch.randint(NUM_ITEMS, (2,), generator=generator).tolist()
        while len(row) < 8:
            row.append((row[-1] + (2 if row[-2] % 2 else 5)) % NUM_ITEMS)
        rows.append(row)
    target = [item for row in rows for item in row[1:]]
    negative = torch.randint(
        NUM_ITEMS, (len(target), 1 if loss == 'bce' else 6), generator=generator
    )
    batch = sequence_batch([row[:-1] for row in rows], target, negative)
    torch.manual_seed(0)
    model = SASRec(NUM_ITEMS, 16, num_layers=1, max_len=8, dropout=0.0, loss=loss)
    train(model, DATA, [batch], 60, lr=2e-2)
    model.eval()
    best = scores(model, sequence_batch([row[:-1] for row in rows])).argmax(dim=1)
    share = (best == torch.tensor([row[-1] for row in rows])).double().mean()
    assert share > (0.9 if loss != 'bce' else 0.35)  # chance is 0.08


def test_beats_popularity() -> None:
    data = LeaveOneOut()(FakeRecDataset()[0])
    popularity = Popularity(data['user'].num_nodes, data['item'].num_nodes)
    popularity.fit(data)
    torch.manual_seed(0)
    model = SASRec(data['item'].num_nodes, 16, num_layers=1, dropout=0.2)
    train(model, data, SequenceLoader(data, 'train', 64), 30)
    floor = evaluate(popularity, data, 'test').metrics['N@10']
    assert evaluate(model, data, 'test').metrics['N@10'] > 2 * floor


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_items': 0}, r"'num_items' must be positive \(got 0\)"),
        ({'num_heads': 3}, r"'embedding_dim' must be a multiple.*got 64 and 3"),
        ({'dropout': 1.0}, r"'dropout' must lie in \[0, 1\) \(got 1.0\)"),
        ({'loss': 'hinge'}, r"'loss' must be one of .*got 'hinge'"),
        ({'max_len': 0}, r"'max_len' must be positive \(got 0\)"),
        ({'smoothing': 1.0}, r"'smoothing' must lie in \[0, 1\) \(got 1.0\)"),
        ({'smoothing': 0.1}, r"'smoothing' needs modalities .*got None"),
        ({'smoothing': 0.1, 'loss': 'bce'}, r"'smoothing' belongs to loss='softmax'"),
        (
            {'smoothing': 0.1, 'candidates': 'unseen'},
            r"'smoothing' belongs to .*unseen",
        ),
        ({'feedforward_dim': -1}, r"'feedforward_dim' must be positive \(got -1\)"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SASRec(**{'num_items': 5, **options})


def test_bad_batches() -> None:
    with pytest.raises(ValueError, match=r"'num_items'.*got 7 in the data and 13"):
        make().encode(item_data(7))
    with pytest.raises(ValueError, match=r"'batch.target' is needed"):
        make().loss(DATA, sequence_batch([[1, 2]]))
    with pytest.raises(ValueError, match=r"'batch.target' must have.*got 3 for 2"):
        make().loss(DATA, sequence_batch([[1, 2]], [1, 2, 3]))
    with pytest.raises(ValueError, match=r"'batch.neg_item' must hold negatives.*None"):
        make('sampled_softmax').loss(DATA, sequence_batch([[1, 2]], [3]))
    with pytest.raises(ValueError, match=r'one negative .*got shape \[1, 2\]'):
        make('bce').loss(DATA, sequence_batch([[1, 2]], [3], sampled(1, 2)))
