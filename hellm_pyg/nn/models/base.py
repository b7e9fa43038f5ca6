"""The interface of models that give every user and item a vector."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn.models.lightgcn import BPRLoss
from torch_geometric.utils import scatter

from hellm_pyg.data.batch import PairBatch, SequenceBatch
from hellm_pyg.indices import check_indices
from hellm_pyg.nn.scoring import inner_products

Vectors = tuple[Tensor, Tensor]


def check_size(data: HeteroData, **expected: int) -> None:
    """Refuses data whose node counts are not those of the model.

    Raises:
        ValueError: If ``num_users`` or ``num_items`` differs.
    """
    for name, size in expected.items():
        node_type = {'num_users': 'user', 'num_items': 'item'}[name]
        found = data[node_type].num_nodes
        if found != size:
            raise ValueError(
                f"The data has another '{name}' than the model "
                f'(got {found} in the data and {size} in the model); build the '
                f'model with {name}={found}'
            )


def check_not_negative(**values: float) -> None:
    """Refuses numbers that are negative, infinite or NaN.

    Raises:
        ValueError: If one is.
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"'{name}' must be finite and not negative (got {value})")


class GraphRecommender(torch.nn.Module):
    r"""A recommender that scores by inner products.

    .. math::
        s(u, i) = \mathbf{e}_u^{\top} \mathbf{e}_i

    Subclasses write :meth:`encode`. The loss is the Bayesian personalised
    ranking loss of `"BPR: Bayesian Personalized Ranking from Implicit
    Feedback" <https://arxiv.org/abs/1205.2618>`_ with a squared
    :math:`L_2` penalty on the final vectors of the batch,

    .. math::
        \frac{1}{B} \sum_{(u,i,j)} \left[ -\ln \sigma(s(u,i) - s(u,j))
        + \lambda (\|\mathbf{e}_u\|^2 + \|\mathbf{e}_i\|^2
        + \|\mathbf{e}_j\|^2) \right].

    Args:
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.
        lambda_reg: Weight of the penalty.

    Raises:
        ValueError: If a number is out of range.
    """

    sampling: ClassVar[Literal['pairs', 'sequences', 'none']] = 'pairs'

    def __init__(self, num_users: int, num_items: int, lambda_reg: float = 0.0) -> None:
        super().__init__()
        for name, value in (('num_users', num_users), ('num_items', num_items)):
            if value < 1:
                raise ValueError(f"'{name}' must be positive (got {value})")
        check_not_negative(lambda_reg=lambda_reg)
        self.num_users = num_users
        self.num_items = num_items
        self.lambda_reg = lambda_reg

    def check_size(self, data: HeteroData) -> None:
        """Refuses data of other users or items than the model's."""
        check_size(data, num_users=self.num_users, num_items=self.num_items)

    def encode(self, data: HeteroData) -> Vectors:
        """Returns all user vectors [U, D] and all item vectors [I, D]."""
        raise NotImplementedError

    def score(self, encoded: Vectors, batch: SequenceBatch) -> Tensor:
        """Scores all items for each row.

        A row whose user is -1 is scored by the mean of the vectors of its
        history, the zero vector if there is none.

        Args:
            encoded: What :meth:`encode` returned.
            batch: Rows of which the user is read, and for unknown users the
                history.

        Returns:
            Scores, float of shape :math:`[B, I]`.

        Raises:
            ValueError: If a user or an item is none of the model's.
        """
        batch.check(self.num_items)
        check_indices('batch.user', batch.user.clamp(min=0), self.num_users, 'users')
        user, item = encoded
        query = user[batch.user.clamp(min=0)]
        unknown = batch.user < 0
        if bool(unknown.any()):
            mean = scatter(
                item[batch.item], batch.batch, dim_size=batch.batch_size, reduce='mean'
            )
            query = torch.where(unknown.unsqueeze(1), mean, query)
        return inner_products(query, item)

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        """Returns the mean loss of the triples, a scalar.

        Raises:
            ValueError: If ``batch`` has no triple, or one of other users or items than
                the model's.
        """
        batch.check(self.num_users, self.num_items)
        return self.ranking_loss(self.encode(data), batch, self.lambda_reg)

    def ranking_loss(
        self, encoded: Vectors, batch: PairBatch, lambda_reg: float
    ) -> Tensor:
        """Returns the ranking loss plus ``lambda_reg`` times the penalty.

        Of several negatives of a triple, :math:`[B, n]`, the ranking loss is averaged;
        the penalty is of them all.
        """
        user, pos = encoded[0][batch.user], encoded[1][batch.pos_item]
        neg = encoded[1][batch.neg_item.view(batch.num_targets, -1)]
        return BPRLoss(lambda_reg)(
            (user * pos).sum(dim=-1, keepdim=True),
            (user.unsqueeze(1) * neg).sum(dim=-1),
            torch.cat([user, pos, neg.flatten(0, 1)]),
        )

    def on_epoch_start(self, data: HeteroData) -> None:
        """Called before every epoch; for models that rebuild a graph."""

    @torch.no_grad()
    def embeddings(self, data: HeteroData) -> dict[str, Tensor]:
        """Returns the vectors that later stages use, ``user`` and ``item``.

        They are those of evaluation mode.
        """
        training = self.training
        self.eval()
        try:
            user, item = self.encode(data)
        finally:
            self.train(training)
        return {'user': user.detach(), 'item': item.detach()}
