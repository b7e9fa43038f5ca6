"""What models share that read a history and score by its items' own table."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.nn.models.base import check_size
from hellm_pyg.nn.scoring import inner_products


class Window(NamedTuple):
    """What is read of each row: its last items, without any padding.

    Args:
        kept: Which items of the batch they are, bool of shape :math:`[T]`.
        item: The items, :math:`[T']`.
        row: The row of each.
        position: The place of each, from 0 at the oldest that is kept.
        length: Number of items of each row, :math:`[B]`.
    """

    kept: Tensor
    item: Tensor
    row: Tensor
    position: Tensor
    length: Tensor


class SequenceRecommender(torch.nn.Module):
    r"""A recommender that scores what follows a history :math:`s_1, \ldots, s_t`.

    .. math::
        s(t, i) = \mathbf{h}(s_1, \ldots, s_t)^{\top} \mathbf{e}_i

    Of longer histories the last ``max_len`` items are read. Subclasses have
    ``num_items``, ``max_len`` and ``item_embedding``, and write :meth:`states` and a
    loss.
    """

    sampling: ClassVar[Literal['pairs', 'sequences', 'none']] = 'sequences'

    num_items: int
    max_len: int
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
            else of the rows, :math:`[B, D]`, 0 for an empty one.

        Raises:
            ValueError: If an item is none of the model's, or rows are not in order.
        """
        batch.check(self.num_items)
        window = self._window(batch)
        states = self.states(encoded, window)
        if batch.targets_positions:
            return states
        out = states.new_zeros(batch.batch_size, encoded.size(1))
        filled = window.length > 0
        out[filled] = states[window.length.cumsum(0)[filled] - 1]
        return out

    def states(self, encoded: Tensor, window: Window) -> Tensor:
        r"""Reads rows up to each of their items.

        Args:
            encoded: The item table that :meth:`encode` returned.
            window: What is read of each row.

        Returns:
            The vectors :math:`\mathbf{h}(s_1, \ldots, s_t)`, :math:`[T', D]`.
        """
        raise NotImplementedError

    def _window(self, batch: SequenceBatch) -> Window:
        length = batch.length
        cut = (length - self.max_len).clamp(min=0)
        position = batch.position - cut[batch.batch]
        kept = position >= 0
        return Window(
            kept, batch.item[kept], batch.batch[kept], position[kept], length - cut
        )

    def score_queries(self, encoded: Tensor, query: Tensor) -> Tensor:
        """Scores all items for some of the :meth:`queries`, [t, I]."""
        return inner_products(query, encoded)

    def on_epoch_start(self, data: HeteroData) -> None:
        """Does nothing; part of the trainer's interface."""

    @torch.no_grad()
    def embeddings(self, data: HeteroData) -> dict[str, Tensor]:
        """Returns the vectors that later stages use, ``item`` [I, D]."""
        return {'item': self.encode(data).detach()}
