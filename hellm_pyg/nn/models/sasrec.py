"""SASRec: a causal transformer over a user's items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.nn.models.item_graph import neighbor_matrix, neighbor_pairs
from hellm_pyg.nn.models.kept import Kept
from hellm_pyg.nn.models.sequence import SequenceRecommender, Window
from hellm_pyg.nn.scoring import candidate_scores, table_cross_entropy
from hellm_pyg.nn.smoothing import NeighborSmoothing
from hellm_pyg.nn.soft_targets import SoftTargets

LOSSES = ('softmax', 'sampled_softmax', 'bce')


class SASRec(SequenceRecommender):
    r"""The sequential model of `"Self-Attentive Sequential Recommendation"
    <https://arxiv.org/abs/1808.09781>`_ with pre-norm blocks and one table
    for input and output.

    .. math::
        \mathbf{x}_t = \sqrt{D} \, \mathbf{e}_{s_t} + \mathbf{p}_t, \qquad
        \mathbf{h} = \mathrm{LN}(\mathrm{blocks}(\mathbf{x})), \qquad
        s(t, i) = \mathbf{h}_t^{\top} \mathbf{e}_i

    Positions count from the oldest of the last ``max_len`` items. The state at
    :math:`t` is therefore a function of items up to :math:`t` alone: it is the
    same in training, where later items follow, and at inference, where it is
    the last. Rows are padded on the right inside the model, up to the longest
    of the batch; no item ever attends to padding, and there is no padding id.

    Losses, averaged over the targets:

    * ``'softmax'``: cross-entropy over all items, in chunks
      (:func:`~hellm_pyg.nn.scoring.table_cross_entropy`);
    * ``'sampled_softmax'``: cross-entropy over the target and the batch's
      uniform negatives, as in `"eSASRec" <https://arxiv.org/abs/2508.06450>`_;
      for uniform negatives the correction by their probability is a constant;
    * ``'bce'``: binary cross-entropy of the target and of one negative, as in
      the paper.

    Args:
        num_items: Number of items :math:`I`.
        embedding_dim: Width :math:`D`.
        num_layers: Number of blocks.
        num_heads: Number of attention heads.
        max_len: Number of positions; longer histories are cut to their last
            ``max_len`` items, and targets of earlier ones do not count.
        dropout: Dropout of the inputs, of attention and of the blocks.
        loss: ``'softmax'``, ``'sampled_softmax'`` or ``'bce'``.
        feedforward_dim: Inner width of the blocks; None for :math:`4 D`.
        chunk_size: Number of targets scored at a time in the loss.
        candidates: What competes in ``loss='softmax'``: ``'all'`` items, or those
            ``'unseen'`` in the history that a target follows. Where seen items
            are not recommended, the model need not learn to rank them, and what
            is like them, low.
        smoothing: Share of a target's weight in ``loss='softmax'`` that its nearest
            neighbours get, see :class:`~hellm_pyg.nn.NeighborSmoothing`. The data
            needs them from :class:`~hellm_pyg.transforms.KNNHyperedges`.
        modalities: In which features items are neighbours (``smoothing``); each gives
            an item one less than ``k`` of the transform, itself.

    Raises:
        ValueError: If an argument is out of range, or data or batch do not
            fit.
    """

    def __init__(
        self,
        num_items: int,
        embedding_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        max_len: int = 50,
        dropout: float = 0.2,
        loss: str = 'softmax',
        feedforward_dim: int | None = None,
        chunk_size: int = 128,
        candidates: str = 'all',
        smoothing: float = 0.0,
        modalities: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ('num_items', num_items),
            ('embedding_dim', embedding_dim),
            ('num_layers', num_layers),
            ('num_heads', num_heads),
            ('max_len', max_len),
            ('chunk_size', chunk_size),
            ('feedforward_dim', 1 if feedforward_dim is None else feedforward_dim),
        ):
            if value < 1:
                raise ValueError(f"'{name}' must be positive (got {value})")
        if embedding_dim % num_heads:
            raise ValueError(
                "'embedding_dim' must be a multiple of 'num_heads' "
                f'(got {embedding_dim} and {num_heads})'
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"'dropout' must lie in [0, 1) (got {dropout})")
        if loss not in LOSSES:
            raise ValueError(f"'loss' must be one of {LOSSES} (got {loss!r})")
        if candidates not in ('all', 'unseen'):
            raise ValueError(
                f"'candidates' must be 'all' or 'unseen' (got {candidates!r})"
            )
        if candidates == 'unseen' and loss != 'softmax':
            raise ValueError(
                f"'candidates' belongs to loss='softmax' (got 'unseen' with {loss!r}, "
                'whose negatives are unseen anyway)'
            )
        if not 0 <= smoothing < 1:
            raise ValueError(f"'smoothing' must lie in [0, 1) (got {smoothing})")
        if smoothing and (loss, candidates) != ('softmax', 'all'):
            raise ValueError(
                f"'smoothing' belongs to loss='softmax' over all items (got "
                f"{smoothing} with loss='{loss}' and candidates='{candidates}')"
            )
        if smoothing and not modalities:
            raise ValueError(
                f"'smoothing' needs modalities in which items are neighbours (got "
                f'{modalities}): give the data features, or set it to 0'
            )
        self.num_items = num_items
        self.embedding_dim = embedding_dim
        self.max_len = max_len
        self.objective = loss
        self.chunk_size = chunk_size
        self.candidates = candidates
        self.smoothing = smoothing
        names = [modalities] if isinstance(modalities, str) else modalities
        self.modalities = list(names or ())
        self._smooth: Kept[NeighborSmoothing] = Kept()
        self.item_embedding = torch.nn.Embedding(num_items, embedding_dim)
        self.position_embedding = torch.nn.Embedding(max_len, embedding_dim)
        self.dropout = torch.nn.Dropout(dropout)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                embedding_dim,
                num_heads,
                feedforward_dim or 4 * embedding_dim,
                dropout,
                activation='gelu',
                batch_first=True,
                norm_first=True,
            )
            for _ in range(num_layers)
        )
        self.norm = torch.nn.LayerNorm(embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws matrices from N(0, 0.02), clears biases, resets norms."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.02)
            elif 'norm' in name and name.endswith('weight'):
                torch.nn.init.ones_(parameter)
            else:
                torch.nn.init.zeros_(parameter)

    def loss(
        self, data: HeteroData, batch: SequenceBatch, soft: SoftTargets | None = None
    ) -> Tensor:
        """Returns the mean loss of the targets, a scalar.

        Args:
            data: Interactions, and the neighbours that smooth the targets.
            batch: Rows with the target of each position or of each row.
            soft: What a teacher tells of each target (``loss='softmax'``).

        Raises:
            ValueError: If there are no targets, or neither one an item nor one a row;
                if negatives are missing, or there are soft targets, for another loss.
        """
        if soft is not None and self.objective != 'softmax':
            raise ValueError(
                f"'soft' belongs to loss='softmax', which scores all items (got "
                f"loss='{self.objective}'): choose it, or train without a teacher"
            )
        target, negative = batch.target, batch.neg_item
        if target is None:
            raise ValueError(
                "'batch.target' is needed for the loss (got None); read the batch "
                "with split='train'"
            )
        if target.numel() not in (batch.item.numel(), batch.batch_size):
            raise ValueError(
                "'batch.target' must have one entry an item or one a row (got "
                f'{target.numel()} for {batch.item.numel()} items and '
                f'{batch.batch_size} rows)'
            )
        table = self.encode(data)
        states = self.queries(table, batch)
        kept = torch.ones_like(target, dtype=torch.bool)
        if batch.targets_positions:
            kept = self._window(batch).kept
            target = target[kept]
            negative = None if negative is None else negative[kept]
            soft = None if soft is None else soft.of(kept)
        hidden = batch.seen_by(kept) if self.candidates == 'unseen' else None
        if self.objective == 'softmax':
            out = table_cross_entropy(
                states, table, target, self.chunk_size, hidden=hidden, soft=soft
            )
            if self.smoothing:
                own = 1 if soft is None else 1 - soft.weight
                out = out + own * self._smoothed(data)(states, table, target)
            return out
        return self._sampled_loss(states, table, target, negative)

    def _smoothed(self, data: HeteroData) -> NeighborSmoothing:
        sources = [neighbor_pairs(data, name) for name in self.modalities]

        def make() -> NeighborSmoothing:
            neighbor = neighbor_matrix(data, self.modalities)
            return NeighborSmoothing(neighbor, self.smoothing).to(sources[0].device)

        return self._smooth.get(sources, make)

    def states(self, encoded: Tensor, window: Window) -> Tensor:
        """Returns the states of the kept items; the only place with padding."""
        _, item, row, position, length = window
        if item.numel() == 0:
            return encoded.new_zeros(0, self.embedding_dim)
        x = F.embedding(item, encoded) * self.embedding_dim**0.5
        x = self.dropout(x + self.position_embedding(position))
        longest = int(length.max())
        dense = x.new_zeros(length.numel(), longest, self.embedding_dim)
        dense[row, position] = x
        mask = torch.nn.Transformer.generate_square_subsequent_mask(
            longest, device=x.device, dtype=x.dtype
        )
        for layer in self.layers:
            dense = layer(dense, src_mask=mask, is_causal=True)
        return self.norm(dense[row, position])

    def _sampled_loss(
        self, states: Tensor, table: Tensor, target: Tensor, negative: Tensor | None
    ) -> Tensor:
        wanted = 'one negative' if self.objective == 'bce' else 'negatives'
        if (
            negative is None
            or negative.dim() != 2
            or negative.size(0) != target.numel()
            or (self.objective == 'bce' and negative.size(1) != 1)
        ):
            got = 'None' if negative is None else f'shape {list(negative.shape)}'
            raise ValueError(
                f"'batch.neg_item' must hold {wanted} a target for "
                f"loss='{self.objective}' (got {got}); set 'num_neg' of the loader"
            )
        candidate = torch.cat([target.unsqueeze(1), negative], dim=1)
        score = candidate_scores(states, table, candidate, self.chunk_size)
        count = max(target.numel(), 1)
        if self.objective == 'bce':
            return (F.softplus(-score[:, 0]) + F.softplus(score[:, 1])).sum() / count
        repeated = negative == target.unsqueeze(1)
        score[:, 1:] = score[:, 1:].masked_fill(repeated, -torch.inf)
        first = torch.zeros_like(target)
        return F.cross_entropy(score, first, reduction='sum') / count
