"""The interface of the graph recommenders, with vectors given by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.nn.models import GraphRecommender
from tests.nn.models.batches import pair_batch, sequence_batch


class Tables(GraphRecommender):
    """Two tables and nothing else."""

    def __init__(self, lambda_reg: float = 0.0) -> None:
        super().__init__(4, 5, lambda_reg)
        generator = torch.Generator().manual_seed(0)
        self.user = torch.nn.Parameter(torch.randn(4, 3, generator=generator))
        self.item = torch.nn.Parameter(torch.randn(5, 3, generator=generator))

    def encode(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        self.check_size(data)
        noise = 1.0 if not self.training else 2.0
        return noise * self.user, self.item


def data(num_users: int = 4, num_items: int = 5) -> HeteroData:
    out = HeteroData()
    out['user'].num_nodes = num_users
    out['item'].num_nodes = num_items
    return out


def test_scores_are_inner_products() -> None:
    model = Tables().eval()
    batch = sequence_batch([[0], [], [1, 2]], user=[3, 0, 3])
    out = model.score(model.encode(data()), batch)
    expected = torch.stack([model.item @ model.user[u] for u in (3, 0, 3)])
    torch.testing.assert_close(out, expected)


def test_unknown_users_are_the_mean_of_their_history() -> None:
    model = Tables().eval()
    batch = sequence_batch([[4, 1, 4], [2], [], [0]], user=[-1, 2, -1, -1])
    out = model.score(model.encode(data()), batch)
    mean = (2 * model.item[4] + model.item[1]) / 3
    torch.testing.assert_close(out[0], model.item @ mean)
    torch.testing.assert_close(out[1], model.item @ model.user[2])
    assert torch.equal(out[2], torch.zeros(5))
    torch.testing.assert_close(out[3], model.item @ model.item[0])


def test_loss_is_bpr_plus_squared_norms() -> None:
    model = Tables(lambda_reg=0.3).eval()
    batch = pair_batch([0, 3, 0], [1, 2, 4], [0, 0, 2])
    u, p, n = model.user[[0, 3, 0]], model.item[[1, 2, 4]], model.item[[0, 0, 2]]
    total = torch.zeros(())
    for k in range(3):
        total = total + F.softplus(u[k] @ n[k] - u[k] @ p[k])
        total = total + 0.3 * sum(x[k] @ x[k] for x in (u, p, n))
    torch.testing.assert_close(model.loss(data(), batch), total / 3)


def test_several_negatives_are_averaged() -> None:
    model = Tables().eval()
    both = pair_batch([0, 3], [1, 2], [[0, 3], [4, 1]])
    parts = [pair_batch([0, 3], [1, 2], [0, 4]), pair_batch([0, 3], [1, 2], [3, 1])]
    expected = sum(model.loss(data(), part) for part in parts) / 2
    torch.testing.assert_close(model.loss(data(), both), expected)
    model.lambda_reg = 0.5
    penalty = model.loss(data(), both) - expected
    rows = [*model.user[[0, 3]], *model.item[[1, 2, 0, 3, 4, 1]]]
    torch.testing.assert_close(penalty, 0.25 * sum(x @ x for x in rows))


def test_equal_scores_cost_the_logarithm_of_two() -> None:
    loss = Tables().loss(data(), pair_batch([1, 2], [3, 3], [3, 3]))
    assert loss.item() == pytest.approx(math.log(2))


def test_embeddings_are_those_of_evaluation_mode() -> None:
    model = Tables().train()
    out = model.embeddings(data())
    assert torch.equal(out['user'], model.user)
    assert torch.equal(out['item'], model.item)
    assert not out['user'].requires_grad
    assert model.training


def test_epochs_start_silently_and_pairs_train() -> None:
    model = Tables()
    assert model.on_epoch_start(data()) is None
    assert model.sampling == 'pairs'


def test_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'num_users'.*got 7 in the data and 4"):
        Tables().encode(data(num_users=7))
    with pytest.raises(ValueError, match=r"'num_items'.*got 9 in the data and 5"):
        Tables().encode(data(num_items=9))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"'num_users' must be positive \(got 0\)"):
        GraphRecommender(0, 3)
    with pytest.raises(ValueError, match=r"'lambda_reg'.*got -1"):
        GraphRecommender(3, 3, -1)
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"'lambda_reg' must be finite.*{weight}"):
            GraphRecommender(3, 3, weight)
    with pytest.raises(NotImplementedError):
        GraphRecommender(3, 3).encode(data())


@pytest.mark.parametrize(
    ('user', 'item', 'match'),
    [
        ([], [[]], r"'batch' needs at least one triple \(got none\)"),
        ([-1], [[0]], r"'batch.user' needs to lie in \[0, 4\).* -1 to -1"),
        ([4], [[0]], r"'batch.user' needs to lie in \[0, 4\), the number of users"),
        ([0], [[5]], r"'batch.item' needs to lie in \[0, 5\), the number of items"),
    ],
)
def test_ids_of_others_are_refused(
    user: list[int], item: list[list[int]], match: str
) -> None:
    model = Tables()
    known, pairs = [0] * len(user), [i for row in item for i in row]
    if 'item' not in match:
        with pytest.raises(ValueError, match=match):
            model.loss(data(), pair_batch(user, known, known))
    if user and user[0] >= 0:
        rows = sequence_batch(item, user=user)
        with pytest.raises(ValueError, match=match):
            model.score(model.encode(data()), rows)
    if pairs and pairs[0] > 0:
        for batch in (pair_batch(user, pairs, known), pair_batch(user, known, pairs)):
            with pytest.raises(ValueError, match=r"_item' needs to lie in \[0, 5\)"):
                model.loss(data(), batch)
