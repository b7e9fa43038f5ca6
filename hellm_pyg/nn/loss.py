"""Contrast between two views of the same nodes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from hellm_pyg.indices import check_indices
from hellm_pyg.nn.directions import directions
from hellm_pyg.nn.once import once, scaled

CHUNK_SIZE = 256


class ContrastiveLoss(torch.nn.Module):
    r"""The node contrast of `"HeLLM: Multi-Modal Hypergraph Enhanced LLM
    Learning for Recommendation" <https://arxiv.org/abs/2504.10541>`_, which
    tells a node's other view from all views of other nodes.

    .. math::
        \mathcal{L} = - \frac{1}{|\mathcal{A}|} \sum_{n \in \mathcal{A}} \log
        \frac{c(\mathbf{z}^1_n, \mathbf{z}^2_n)}
        {c(\mathbf{z}^1_n, \mathbf{z}^2_n)
        + \sum_{m \in \mathcal{S}, m \neq n} c(\mathbf{z}^1_n, \mathbf{z}^2_m)
        + \sum_{m \in \mathcal{S}, m \neq n} c(\mathbf{z}^1_n, \mathbf{z}^1_m)},
        \qquad
        c(\mathbf{x}, \mathbf{y}) = \exp \left( \frac{1}{\tau}
        \frac{\mathbf{x}^{\top} \mathbf{y}}
        {\lVert \mathbf{x} \rVert \lVert \mathbf{y} \rVert} \right)

    Similarities are computed for some anchors at a time, and the gradient with
    them, so that no :math:`|\mathcal{A}| \times |\mathcal{S}|` matrix is ever
    held; in 32 bits at least, also under autocast. Gradients flow into both
    views; the loss can be differentiated once. A row of zeros has no
    direction: its similarities are 0 and it gets no gradient.

    Args:
        temperature: The temperature :math:`\tau`.
        symmetric: Whether to average the loss with that of exchanged views.
        intra_view: Whether other nodes of the anchor's own view, the last sum
            above, are negatives too.
        scope: Anchors :math:`\mathcal{A}` and negatives :math:`\mathcal{S}`:
            :obj:`"batch"` takes the nodes of the mini-batch for both,
            :obj:`"full"` all nodes for both, which costs :math:`N^2`, and a
            number :math:`n` takes the mini-batch as anchors and :math:`n`
            nodes drawn uniformly from all nodes, without repetition, as
            negatives.
        chunk_size: The number of anchors whose similarities with all negatives
            are held at a time.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        symmetric: bool = False,
        intra_view: bool = True,
        scope: Literal['batch', 'full'] | int = 'batch',
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        super().__init__()
        if not 0 < temperature < float('inf'):
            raise ValueError(f"'temperature' needs to be positive (got {temperature})")
        counts = isinstance(scope, int) and not isinstance(scope, bool) and scope > 0
        if not counts and scope not in ('batch', 'full'):
            raise ValueError(
                f"'scope' needs to be 'batch', 'full' or a positive number of "
                f'negatives (got {scope!r})'
            )
        if chunk_size < 1:
            raise ValueError(f"'chunk_size' needs to be at least 1 (got {chunk_size})")
        self.temperature = temperature
        self.symmetric = symmetric
        self.intra_view = intra_view
        self.scope = scope
        self.chunk_size = chunk_size

    def forward(self, z1: Tensor, z2: Tensor, index: Tensor | None = None) -> Tensor:
        r"""Computes the loss.

        Args:
            z1: The anchors' view of all nodes, :math:`[N, F]`.
            z2: The other view of all nodes, :math:`[N, F]`.
            index: Nodes of the mini-batch, int64 of any length, where a node
                given several times counts once; all nodes if :obj:`None`.
                The full scope does not read it.

        Returns:
            The mean over the anchors, a scalar.

        Raises:
            ValueError: If shapes do not fit, there is no anchor or no such node.
        """
        if z1.dim() != 2 or z1.shape != z2.shape:
            raise ValueError(
                f"'z1' and 'z2' need to be of the same shape [N, F] "
                f'(got {list(z1.shape)} and {list(z2.shape)})'
            )
        if index is not None and (index.dim() != 1 or index.dtype != torch.long):
            raise ValueError(
                f"'index' needs to be int64 of shape [B] "
                f'(got {index.dtype} of shape {list(index.shape)})'
            )
        num_nodes = z1.size(0)
        if num_nodes == 0 or (index is not None and index.numel() == 0):
            raise ValueError("'z1' and 'index' need at least one node (got none)")

        if index is not None:
            check_indices('index', index, num_nodes, 'nodes')
        node = None if self.scope == 'full' or index is None else index.unique()
        with torch.autocast(z1.device.type, enabled=False):
            a, b = (_directions(z if node is None else z[node]) for z in (z1, z2))
            if isinstance(self.scope, int):
                sample = torch.randperm(num_nodes, device=z1.device)[: self.scope]
                place = sample.new_full((num_nodes,), -1)
                place[sample] = torch.arange(sample.numel(), device=z1.device)
                place = place if node is None else place[node]
                other_a, other_b = (_directions(z[sample]) for z in (z1, z2))
            else:
                place = torch.arange(a.size(0), device=z1.device)
                other_a, other_b = a, b
            loss = self._one_way(a, b, other_a, other_b, place)
            if self.symmetric:
                loss = (loss + self._one_way(b, a, other_b, other_a, place)) / 2
        return loss

    def _one_way(
        self, anchor: Tensor, positive: Tensor, same: Tensor, other: Tensor, own: Tensor
    ) -> Tensor:
        """Mean loss of anchors; ``own`` is where each is among the negatives."""
        skip = own.view(-1, 1)
        if self.intra_view:
            skip = torch.cat([skip, torch.where(skip < 0, -1, skip + len(other))], 1)
            other = torch.cat([other, same])
        return _Contrast.apply(
            anchor, positive, other, skip, self.temperature, self.chunk_size
        )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(temperature={self.temperature}, '
            f'scope={self.scope!r}, symmetric={self.symmetric}, '
            f'intra_view={self.intra_view})'
        )


def _directions(z: Tensor) -> Tensor:
    return directions(z.to(torch.promote_types(z.dtype, torch.float32)))


class _Contrast(torch.autograd.Function):
    """Mean loss of the anchors; ``skip`` names the negatives each does not have."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        positive: Tensor,
        other: Tensor,
        skip: Tensor,
        temperature: float,
        chunk_size: int,
    ) -> Tensor:
        query, loss = anchor / temperature, anchor.new_zeros(())
        needed, grads = any(ctx.needs_input_grad), []
        if needed:
            grads = [torch.zeros_like(x) for x in (anchor, positive, other)]
        for start in range(0, anchor.size(0), chunk_size):
            row = slice(start, start + chunk_size)
            match = (query[row] * positive[row]).sum(dim=1, keepdim=True)
            share = query[row] @ other.T
            for place in skip[row].split(1, dim=1):
                kept = share.gather(1, place.clamp(min=0))
                hidden = kept.masked_fill(place >= 0, -torch.inf)
                share.scatter_(1, place.clamp(min=0), hidden)
            top = torch.maximum(match, share.amax(dim=1, keepdim=True))
            share = share.sub_(top).exp_()
            negative = share.sum(dim=1, keepdim=True)
            total = negative + (match - top).exp()
            loss += (total.log() + top - match).sum()
            if needed:
                # The share of an anchor's negatives is what its positive lacks.
                share, pull = share.div_(total), negative.div_(total).neg_()
                grads[0][row] = (share @ other).addcmul_(pull, positive[row])
                grads[1][row] = pull * query[row]
                grads[2].addmm_(share.T, query[row])
            del share  # before there is another one
        if needed:
            grads[0] /= temperature
            ctx.save_for_backward(*grads, anchor, positive, other)
        ctx.count = anchor.size(0)
        return loss / ctx.count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, kept = grad / ctx.count, ctx.saved_tensors
        grads = once('ContrastiveLoss', scaled, scale, *kept)
        return *grads, None, None, None
