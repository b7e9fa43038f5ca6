"""From a read-out state of the language model to a score of every item."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hellm_pyg.llm.projector import FusedProjector
from hellm_pyg.nn.scoring import Pairs, inner_products, table_cross_entropy
from hellm_pyg.nn.smoothing import NeighborSmoothing
from hellm_pyg.nn.soft_targets import SoftTargets


class ItemHead(nn.Module):
    r"""Scores all items against read-out states.

    ``'linear'`` is the trained classifier of the paper, without bias:

    .. math::
        s_{ti} = \mathbf{w}_i^{\top} \mathbf{h}_t

    ``'frozen_random'`` is what the released code does instead: a random code of
    every item that is never trained. ``'tied'`` reads the items' own embeddings
    :math:`\mathbf{e}_i \in \mathbb{R}^{S}`, so that similar items share strength
    and an item has but a bias of its own:

    .. math::
        s_{ti} = \frac{1}{\sqrt{k}} (\mathbf{M} \mathbf{h}_t)^{\top}
        f(\mathbf{e}_i) + c_i

    with :math:`f` the identity (:math:`k = S`) or a two-layer MLP.

    Args:
        kind (str): ``'linear'``, ``'frozen_random'`` or ``'tied'``.
        hidden_size (int): Width :math:`H` of the read-out states.
        num_items (int): Number of items :math:`I`.
        state_channels (int, optional): Width :math:`S` of the items' embeddings
            (``'tied'`` only).
        adapter_channels (int, optional): Width :math:`k` of a trained MLP on the
            items' embeddings; :obj:`None` takes them as they are (``'tied'``
            only). (default: :obj:`None`)
        dropout (float): Dropout on the read-out states. (default: :obj:`0.0`)

    Shapes:
        - **input:** states :math:`(N, H)`, item embeddings :math:`(I, S)`
        - **output:** scores :math:`(N, I)` in fp32

    Raises:
        ValueError: If ``kind`` is unknown or lacks its width, or ``dropout`` lies
            outside :math:`[0, 1)`.
    """

    weight: Tensor

    def __init__(
        self,
        kind: Literal['linear', 'frozen_random', 'tied'],
        hidden_size: int,
        num_items: int,
        state_channels: int | None = None,
        adapter_channels: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in ('linear', 'frozen_random', 'tied'):
            raise ValueError(
                f"'kind' needs to be 'linear', 'frozen_random' or 'tied' (got {kind!r})"
            )
        if kind != 'tied' and adapter_channels is not None:
            raise ValueError(
                f"'adapter_channels' belongs to the tied head (got {adapter_channels} "
                f'with {kind!r})'
            )
        self.kind = kind
        self.hidden_size = hidden_size
        self.num_items = num_items
        if adapter_channels is not None and adapter_channels < 1:
            raise ValueError(
                f"'adapter_channels' needs to be positive (got {adapter_channels})"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"'dropout' needs to lie in [0, 1) (got {dropout})")
        self.adapter_channels = adapter_channels
        self.dropout = dropout
        self.query: nn.Linear | None = None
        self.adapter: FusedProjector | None = None
        if kind == 'tied':
            if not state_channels:
                raise ValueError(
                    f"'state_channels' needs the width of the item embeddings that a "
                    f'tied head reads (got {state_channels})'
                )
            channels = adapter_channels or state_channels
            self.query = nn.Linear(hidden_size, channels, bias=False)
            if adapter_channels is not None:
                self.adapter = FusedProjector(state_channels, channels)
            self.bias = nn.Parameter(torch.empty(num_items))
        elif kind == 'linear':
            self.weight = nn.Parameter(torch.empty(num_items, hidden_size))
        else:
            self.register_buffer('weight', torch.empty(num_items, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets all parameters, and the random codes of the frozen head."""
        if self.query is not None:
            self.query.reset_parameters()
            nn.init.zeros_(self.bias)
            if self.adapter is not None:
                self.adapter.reset_parameters()
        else:
            bound = 1 / math.sqrt(self.hidden_size)
            nn.init.uniform_(self.weight, -bound, bound)

    def items(self, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns the items' side of the scores: vectors and biases.

        Args:
            state: Item embeddings, :math:`[I, S]` (tied head only).

        Raises:
            ValueError: If a tied head gets no embeddings.
        """
        if self.query is None:
            return self.weight, None
        if state is None:
            raise ValueError("'state' is needed by a tied head (got None)")
        vectors = state if self.adapter is None else self.adapter(state)
        return vectors / math.sqrt(vectors.size(-1)), self.bias

    def queries(self, x: Tensor) -> Tensor:
        """Returns the read-out states in the space of the items' vectors."""
        x = F.dropout(x.float(), self.dropout, self.training)
        if self.query is None:
            return x
        weight = self.query.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return F.linear(x.to(dtype), weight.to(dtype))

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """Returns the scores of all items, always in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x, *self.items(state))

    def score(self, x: Tensor, vectors: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the scores for item vectors that :meth:`items` has given."""
        with torch.autocast(x.device.type, enabled=False):
            query = self.queries(x)
        scores = inner_products(query, vectors)
        return scores if bias is None else scores + bias

    def loss(
        self,
        x: Tensor,
        target: Tensor,
        state: Tensor | None = None,
        hidden: Pairs = None,
        smoothing: NeighborSmoothing | None = None,
        soft: SoftTargets | None = None,
    ) -> Tensor:
        r"""Returns the mean cross-entropy over the items.

        No more than :math:`2^{24}` scores live at once, whatever the number of
        targets. Under autocast the adapter :math:`f` runs in its type; the scores
        are in fp32 all the same.

        Args:
            x: Read-out states, :math:`[N, H]`.
            target: Index of the right item of each state, :math:`[N]`.
            state: Item embeddings, :math:`[I, S]` (tied head only).
            hidden: Items that a state does not choose from, see
                :func:`~hellm_pyg.nn.scoring.table_cross_entropy`.
            smoothing: Lets the neighbours of a target share its weight.
            soft: Lets a teacher share it, that of the neighbours included.
        """
        vectors, bias = self.items(state)
        with torch.autocast(x.device.type, enabled=False):
            query = self.queries(x)
        vectors = vectors.float()
        loss = table_cross_entropy(
            query, vectors, target, bias=bias, hidden=hidden, soft=soft
        )
        if smoothing is None:
            return loss
        own = 1 if soft is None else 1 - soft.weight
        return loss + own * smoothing(query, vectors, target, bias)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.kind!r}, {self.hidden_size}, '
            f'{self.num_items})'
        )
