"""From a read-out state of the language model to a score of every item."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hellm_pyg.llm.projector import FusedProjector

# Logits that live at once: 64 MiB in fp32.
CHUNK_ELEMENTS = 2**24


class ItemHead(nn.Module):
    r"""Scores all items against read-out states.

    ``'linear'`` is the trained classifier of the paper, without bias:

    .. math::
        s_{ti} = \mathbf{w}_i^{\top} \mathbf{h}_t

    ``'frozen_random'`` is what the released code does instead: a random code of
    every item that is never trained. ``'tied'`` reads the items' own embeddings
    :math:`\mathbf{e}_i \in \mathbb{R}^{S}`, so that similar items share strength
    and new items need no new weights:

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

    Shapes:
        - **input:** states :math:`(N, H)`, item embeddings :math:`(I, S)`
        - **output:** scores :math:`(N, I)` in fp32

    Raises:
        ValueError: If ``kind`` is unknown or lacks its width.
    """

    weight: Tensor

    def __init__(
        self,
        kind: Literal['linear', 'frozen_random', 'tied'],
        hidden_size: int,
        num_items: int,
        state_channels: int | None = None,
        adapter_channels: int | None = None,
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
        self.adapter_channels = adapter_channels
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
        return x.float() if self.query is None else self.query(x.float())

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """Returns the scores of all items, always in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x, *self.items(state))

    def score(self, x: Tensor, vectors: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the scores for item vectors that :meth:`items` has given."""
        # Scores in bf16 would tie most of the catalogue.
        with torch.autocast(x.device.type, enabled=False):
            scores = self.queries(x) @ vectors.t()
            return scores if bias is None else scores + bias

    def loss(self, x: Tensor, target: Tensor, state: Tensor | None = None) -> Tensor:
        r"""Returns the mean cross-entropy over all items.

        No more than :math:`2^{24}` scores live at once, whatever the number of
        targets.

        Args:
            x: Read-out states, :math:`[N, H]`.
            target: Index of the right item of each state, :math:`[N]`.
            state: Item embeddings, :math:`[I, S]` (tied head only).
        """
        with torch.autocast(x.device.type, enabled=False):
            vectors, bias = self.items(state)
            query = self.queries(x)
        return cross_entropy(query, vectors, bias, target)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.kind!r}, {self.hidden_size}, '
            f'{self.num_items})'
        )


def cross_entropy(
    query: Tensor,
    vectors: Tensor,
    bias: Tensor | None,
    target: Tensor,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Mean softmax cross-entropy of inner products, without all the logits.

    .. math::
        \frac{1}{N} \sum_{n=1}^{N} \left( \log \sum_{i=1}^{I}
        \exp(\mathbf{q}_n^{\top} \mathbf{v}_i + c_i)
        - \mathbf{q}_n^{\top} \mathbf{v}_{y_n} - c_{y_n} \right)

    The gradients are taken chunk by chunk while the logits are at hand, so
    nothing of size :math:`N \times I` is kept and nothing is computed twice.
    Logits and softmax are fp32; under autocast the gradients' products run in
    its type.

    Args:
        query: States, :math:`[N, k]`.
        vectors: Items, :math:`[I, k]`.
        bias: Biases of the items, :math:`[I]`, or :obj:`None`.
        target: Right items, :math:`[N]`.
        chunk_size: States at once; by default as many as keep
            :math:`2^{24}` logits.
    """
    if chunk_size is None:
        chunk_size = max(1, CHUNK_ELEMENTS // max(1, vectors.size(0)))
    if not torch.is_grad_enabled():
        query, vectors = query.detach(), vectors.detach()
        bias = None if bias is None else bias.detach()
    return _CrossEntropy.apply(query, vectors, bias, target, chunk_size)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        vectors: Tensor,
        bias: Tensor | None,
        target: Tensor,
        chunk_size: int,
    ) -> Tensor:
        need_query, need_vectors, need_bias = ctx.needs_input_grad[:3]
        device = query.device.type
        dtype = query.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        low = vectors.to(dtype)
        grads = (
            torch.empty_like(query) if need_query else None,
            torch.zeros_like(vectors) if need_vectors else None,
            torch.zeros_like(bias) if bias is not None and need_bias else None,
        )
        total = query.new_zeros(())
        with torch.autocast(device, enabled=False):
            for start in range(0, query.size(0), chunk_size):
                rows = slice(start, start + chunk_size)
                logits = query[rows] @ vectors.t()
                if bias is not None:
                    logits += bias
                right = target[rows].unsqueeze(1)
                at_right = logits.gather(1, right)
                top, at_top = logits.max(dim=1, keepdim=True)
                share = logits.softmax(dim=1)
                # The largest share is at least 1 / I, so its log is finite.
                total += (top - share.gather(1, at_top).log() - at_right).sum()
                if not any(grad is not None for grad in grads):
                    continue
                # Softmax minus one-hot: the gradient of the summed loss.
                grad = share.scatter_add_(1, right, -torch.ones_like(at_right))
                if grads[2] is not None:
                    grads[2].add_(grad.sum(dim=0))
                grad = grad.to(dtype)
                if grads[0] is not None:
                    grads[0][rows] = grad @ low
                if grads[1] is not None:
                    grads[1].add_(grad.t() @ query[rows].to(dtype))
        number = max(1, query.size(0))
        ctx.save_for_backward(*grads)
        ctx.number = number
        return total / number

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_output / ctx.number
        grads = [
            None if grad is None else grad * scale.to(grad.dtype)
            for grad in ctx.saved_tensors
        ]
        return (*grads, None, None)
