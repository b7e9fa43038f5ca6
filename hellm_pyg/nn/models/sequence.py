"""What models share that read a history and score by its items' own table."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.nn.models.base import check_size
from hellm_pyg.nn.scoring import inner_products


class SequenceRecommender(torch.nn.Module):
    r"""A recommender that scores what follows a history :math:`s_1, \ldots, s_t`.

    .. math::
        s(t, i) = \mathbf{h}(s_1, \ldots, s_t)^{\top} \mathbf{e}_i

    Subclasses have ``num_items`` and ``item_embedding``, and write :meth:`queries` and
    a loss.
    """

    sampling: ClassVar[Literal['pairs', 'sequences', 'none']] = 'sequences'

    num_items: int
    item_embedding: torch.nn.Embedding

    def encode(self, data: HeteroData) -> Tensor:
        """Returns the item table [I, D]."""
        check_size(data, num_items=self.num_items)
        return self.item_embedding.weight

    def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        """Scores all items after the last item of each row.

        Args:
            encoded: The item table that :meth:`encode` returned.
            batch: Rows of which the history is read.

        Returns:
            Scores, float of shape :math:`[B, I]`; 0 for an empty history.
        """
        rows = replace(batch, target=None, neg_item=None)
        return self.score_queries(encoded, self.queries(encoded, rows))

    def queries(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        r"""Reads the histories of all targets at once.

        Args:
            encoded: The item table that :meth:`encode` returned.
            batch: Rows, with the target of each position or of each row, or without
                any.

        Returns:
            The vectors :math:`\mathbf{h}` of the positions, :math:`[T, D]`, where each
            has a target, but for those that lie before what a model reads of a row;
            else of the rows, :math:`[B, D]`.
        """
        raise NotImplementedError

    def score_queries(self, encoded: Tensor, query: Tensor) -> Tensor:
        """Scores all items for some of the :meth:`queries`, [t, I]."""
        return inner_products(query, encoded)

    def on_epoch_start(self, data: HeteroData) -> None:
        """Does nothing; part of the trainer's interface."""

    @torch.no_grad()
    def embeddings(self, data: HeteroData) -> dict[str, Tensor]:
        """Returns the vectors that later stages use, ``item`` [I, D]."""
        return {'item': self.encode(data).detach()}
