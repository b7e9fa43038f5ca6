"""GRU4Rec: a gated recurrent unit over a user's items."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.nn.models.sequence import SequenceRecommender, Window
from hellm_pyg.nn.scoring import table_cross_entropy
from hellm_pyg.nn.soft_targets import SoftTargets


class GRU4Rec(SequenceRecommender):
    r"""The sequential model of `"Session-based Recommendations with Recurrent
    Neural Networks" <https://arxiv.org/abs/1511.06939>`_ with one table for
    input and output, trained by cross-entropy over all items.

    .. math::
        \mathbf{h}_t = \mathrm{GRU}(\mathbf{e}_{s_t}, \mathbf{h}_{t-1}), \qquad
        s(t, i) = (\mathbf{W} \mathbf{h}_t + \mathbf{b})^{\top} \mathbf{e}_i

    The unit has no bias. Rows are packed: no step is spent on padding, and a
    state depends on its own row up to :math:`t` alone. A row without items
    scores 0 throughout.

    Args:
        num_items: Number of items :math:`I`.
        embedding_dim: Width :math:`D` of the table.
        hidden_dim: Width of the states.
        num_layers: Number of recurrent layers.
        dropout: Dropout of the inputs, and between layers.
        max_len: Number of last items of a history that are read; targets of earlier
            ones do not count.
        chunk_size: Number of targets scored at a time in the loss.

    Raises:
        ValueError: If an argument is out of range, or data or batch do not
            fit.
    """

    def __init__(
        self,
        num_items: int,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        num_layers: int = 1,
        dropout: float = 0.3,
        max_len: int = 50,
        chunk_size: int = 128,
    ) -> None:
        super().__init__()
        for name, value in (
            ('num_items', num_items),
            ('embedding_dim', embedding_dim),
            ('hidden_dim', hidden_dim),
            ('num_layers', num_layers),
            ('max_len', max_len),
            ('chunk_size', chunk_size),
        ):
            if value < 1:
                raise ValueError(f"'{name}' must be positive (got {value})")
        if not 0 <= dropout < 1:
            raise ValueError(f"'dropout' must lie in [0, 1) (got {dropout})")
        self.num_items = num_items
        self.max_len = max_len
        self.chunk_size = chunk_size
        self.item_embedding = torch.nn.Embedding(num_items, embedding_dim)
        self.dropout = torch.nn.Dropout(dropout)
        self.gru = torch.nn.GRU(
            embedding_dim,
            hidden_dim,
            num_layers,
            bias=False,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.output = torch.nn.Linear(hidden_dim, embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table and all matrices anew."""
        torch.nn.init.xavier_normal_(self.item_embedding.weight)
        for weight in (*self.gru.parameters(), self.output.weight):
            torch.nn.init.xavier_uniform_(weight)
        torch.nn.init.zeros_(self.output.bias)

    def loss(
        self, data: HeteroData, batch: SequenceBatch, soft: SoftTargets | None = None
    ) -> Tensor:
        """Returns the mean loss of the targets, a scalar.

        Args:
            data: Tells the number of items.
            batch: Rows with the target of each position or of each row.
            soft: What a teacher tells of each target.

        Raises:
            ValueError: If there are no targets, or neither one an item nor one
                a row.
        """
        table, target = self.encode(data), batch.target
        if target is None or target.numel() not in (
            batch.item.numel(),
            batch.batch_size,
        ):
            got = 'None' if target is None else target.numel()
            raise ValueError(
                "'batch.target' must have one entry an item or one a row (got "
                f'{got} for {batch.item.numel()} items and {batch.batch_size} rows)'
            )
        states = self.queries(table, batch)
        if batch.targets_positions:
            kept = self._window(batch).kept
            target, soft = target[kept], None if soft is None else soft.of(kept)
        return table_cross_entropy(states, table, target, self.chunk_size, soft=soft)

    def states(self, encoded: Tensor, window: Window) -> Tensor:
        """Returns the output after each item, [T', D]."""
        _, item, row, position, length = window
        if item.numel() == 0:
            return encoded.new_zeros(0, encoded.size(1))
        filled = length > 0
        row, length = (filled.cumsum(0) - 1)[row], length[filled]
        x = self.dropout(F.embedding(item, encoded))
        dense = x.new_zeros(length.numel(), int(length.max()), x.size(1))
        dense[row, position] = x
        packed = pack_padded_sequence(
            dense, length.cpu(), batch_first=True, enforce_sorted=False
        )
        hidden, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.output(hidden[row, position])

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_items}, '
            f'{self.item_embedding.embedding_dim}, {self.gru.hidden_size})'
        )
