"""GRU4Rec: its recurrence by hand, independence of batch, and its loss."""

from __future__ import annotations

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
from hellm_pyg.nn.models import GRU4Rec, Popularity
from hellm_pyg.transforms import LeaveOneOut
from tests.nn.models.batches import item_data, sequence_batch, train
from tests.nn.models.lessons import assert_learns
from tests.nn.models.modalities import assert_same_gradients, scatter_parameters

NUM_ITEMS = 13
DATA = item_data(NUM_ITEMS)
HISTORIES = [[3, 1, 4], [5], [9, 2, 6, 5, 3, 8, 7], [0, 12]]

histories = st.lists(
    st.lists(st.integers(0, NUM_ITEMS - 1), max_size=9), min_size=1, max_size=6
)


def make(**kwargs: object) -> GRU4Rec:
    options: dict = {'embedding_dim': 6, 'hidden_dim': 5, **kwargs}
    model = GRU4Rec(NUM_ITEMS, **options)
    scatter_parameters(model)
    return model.double().eval()


def scores(model: GRU4Rec, batch: SequenceBatch) -> Tensor:
    return model.score(model.encode(DATA), batch)


def by_hand(model: GRU4Rec, row: list[int]) -> Tensor:
    """Scores after the last item, from the equations of the unit."""
    table = model.item_embedding.weight
    gates_x = model.gru.weight_ih_l0.chunk(3)
    gates_h = model.gru.weight_hh_l0.chunk(3)
    h = torch.zeros(5, dtype=torch.double)
    for item in row:
        x = table[item]
        reset = torch.sigmoid(gates_x[0] @ x + gates_h[0] @ h)
        update = torch.sigmoid(gates_x[1] @ x + gates_h[1] @ h)
        new = torch.tanh(gates_x[2] @ x + reset * (gates_h[2] @ h))
        h = (1 - update) * new + update * h
    return table @ (model.output.weight @ h + model.output.bias)


def test_scores_loss_and_gradients_equal_the_equations() -> None:
    for chunk_size in (1, 3, 100):
        model = make(chunk_size=chunk_size)
        expected = torch.stack([by_hand(model, row) for row in HISTORIES])
        torch.testing.assert_close(scores(model, sequence_batch(HISTORIES)), expected)
        target = [2, 0, 8, 1]
        loss = F.cross_entropy(expected, torch.tensor(target))
        batch = sequence_batch(HISTORIES, target)
        assert_same_gradients(model, model.loss(DATA, batch), loss)


@given(rows=histories)
@settings(max_examples=12, deadline=None)
def test_a_row_depends_on_itself_alone(rows: list[list[int]]) -> None:
    model = make(num_layers=2)
    together = scores(model, sequence_batch(rows))
    alone = torch.cat([scores(model, sequence_batch([row])) for row in rows])
    torch.testing.assert_close(together, alone)
    empty = torch.tensor([not row for row in rows])
    assert torch.equal(together[empty], torch.zeros_like(together[empty]))
    assert bool((together[~empty] != 0).any(dim=1).all())


def test_all_positions_equal_one_row_a_prefix() -> None:
    model = make()
    rows = [row for row in HISTORIES if len(row) > 1]
    target = [item for row in rows for item in row[1:]]
    every = sequence_batch([row[:-1] for row in rows], target)
    each = sequence_batch([row[:t] for row in rows for t in range(1, len(row))], target)
    torch.testing.assert_close(model.loss(DATA, every), model.loss(DATA, each))


def test_the_last_items_are_read() -> None:
    model = make(max_len=2)
    expected = torch.stack([by_hand(model, row[-2:]) for row in HISTORIES])
    torch.testing.assert_close(scores(model, sequence_batch(HISTORIES)), expected)
    target = [item + 1 for row in HISTORIES[:3] for item in row]
    every = sequence_batch(HISTORIES[:3], target)
    last = sequence_batch([[1, 4], [5], [8, 7]], [2, 5, 6, 9, 8])
    assert_same_gradients(model, model.loss(DATA, every), model.loss(DATA, last))


def test_a_teacher_shares_the_weight_of_a_target() -> None:
    model = make()
    every = sequence_batch([[1, 2, 3], [4, 5]], [2, 3, 6, 5, 7])
    seen = sequence_batch([[1], [1, 2], [1, 2, 3], [4], [4, 5]])
    assert_learns(lambda soft: model.loss(DATA, every, soft), scores(model, seen))


def test_dropout_is_off_in_evaluation() -> None:
    model = make(dropout=0.5)
    batch = sequence_batch(HISTORIES)
    assert torch.equal(scores(model, batch), scores(model, batch))
    model.train()
    assert not torch.equal(scores(model, batch), scores(model, batch))


def test_half_precision_training_step() -> None:
    model = make().float()
    batch = sequence_batch(HISTORIES, [2, 0, 8, 1])
    with torch.autocast('cpu', torch.bfloat16):
        out = model.loss(DATA, batch)
    out.backward()
    assert out.item() == pytest.approx(model.loss(DATA, batch).item(), rel=0.03)
    assert all(p.grad is not None for p in model.parameters())


def test_embeddings_are_the_table() -> None:
    model = make()
    out = model.embeddings(DATA)
    assert set(out) == {'item'}
    assert torch.equal(out['item'], model.item_embedding.weight)
    assert model.sampling == 'sequences'
    assert model.on_epoch_start(DATA) is None


def test_beats_popularity() -> None:
    data = LeaveOneOut()(FakeRecDataset()[0])
    popularity = Popularity(data['user'].num_nodes, data['item'].num_nodes)
    popularity.fit(data)
    torch.manual_seed(0)
    model = GRU4Rec(data['item'].num_nodes, 16, 32)
    train(model, data, SequenceLoader(data, 'train', 64), 30)
    floor = evaluate(popularity, data, 'test').metrics['N@10']
    assert evaluate(model, data, 'test').metrics['N@10'] > 4 * floor


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_items': 0}, r"'num_items' must be positive \(got 0\)"),
        ({'hidden_dim': 0}, r"'hidden_dim' must be positive \(got 0\)"),
        ({'max_len': 0}, r"'max_len' must be positive \(got 0\)"),
        ({'dropout': 1.0}, r"'dropout' must lie in \[0, 1\) \(got 1.0\)"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRU4Rec(**{'num_items': 5, **options})


def test_bad_batches() -> None:
    with pytest.raises(ValueError, match=r"'num_items'.*got 7 in the data and 13"):
        make().encode(item_data(7))
    with pytest.raises(ValueError, match=r"'batch.target' must have.*got None"):
        make().loss(DATA, sequence_batch([[1, 2]]))
    with pytest.raises(ValueError, match=r"'batch.target' must have.*got 3 for 2"):
        make().loss(DATA, sequence_batch([[1, 2]], [1, 2, 3]))


def test_repr() -> None:
    assert repr(GRU4Rec(5, 8, 16)) == 'GRU4Rec(5, 8, 16)'
