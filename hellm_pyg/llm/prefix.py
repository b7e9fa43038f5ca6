"""Graph prefix: item embeddings of a history, pooled into attention slots."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import MLP

from hellm_pyg.llm.prefix_states import PrefixStates, Rotation
from hellm_pyg.nn.aggr import SecondOrderAggregation

EPS = 1e-5


class GraphPrefix(torch.nn.Module):
    r"""The graph prefix of HeLLM, generated from second-order pooled items.

    See `"HeLLM: Multimodal Hypergraph Enhanced LLM Learning for Recommendation"
    <https://arxiv.org/abs/2504.10541>`_. With the item embeddings :math:`x_s`
    of a history, position :math:`t` has

    .. math::
        \mathbf{G}_t = \sum_{s \leq t} (\mathbf{W}^{\top} x_s)
        (\mathbf{W}^{\top} x_s)^{\top}, \qquad
        u_t = \mathrm{RMSNorm}_1 \left( f(\mathrm{vec} \, \mathbf{G}_t) \right)

    and the slots :math:`\mathrm{RMSNorm}_2(\mathbf{\Theta}_{l,p} + u_t)`,
    :math:`p = 1, \ldots, P`, in layer :math:`l`; keys and values have
    :math:`f`, :math:`\mathbf{\Theta}` and norms of their own. The outer norm
    and the layer's projections are applied by the attention, in factors.

    Args:
        channels: Width of the item embeddings.
        hidden_size: Width :math:`H` of the language model.
        num_layers: Layers :math:`L` of the language model.
        num_tokens: Slots :math:`P` in each layer.
        rank: Columns of the pooling map :math:`\mathbf{W}`. :obj:`None` pools
            the embeddings themselves.
        scale: ``'sum'`` leaves :math:`\mathbf{G}` as it is, ``'mean'`` divides
            it by :math:`t`, and ``'sqrt_l2'`` divides it, takes the signed
            square root and normalises.
        scope: ``'user'`` makes one prefix of the whole history, ``'causal'``
            one a position, of the items up to it.
        gate: ``'none'`` adds the slots to the softmax, ``'tanh'`` adds what a
            softmax of their own reads, scaled by a gate that starts at zero.
        dropout: Dropout probability inside :math:`f`.
        hidden_channels: Width of the hidden layer of :math:`f` (default: its
            input width).
        pool: Without, the prefix is static: there is no :math:`u`.
        rotary: Rotates the keys of the slots to the positions
            :math:`0, \ldots, P - 1`, as GraphLLM does. Without, they are all at
            position 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        channels: int,
        hidden_size: int,
        num_layers: int,
        num_tokens: int = 10,
        rank: int | None = None,
        scale: Literal['sum', 'mean', 'sqrt_l2'] = 'sum',
        scope: Literal['user', 'causal'] = 'user',
        gate: Literal['none', 'tanh'] = 'none',
        dropout: float = 0.3,
        hidden_channels: int | None = None,
        pool: bool = True,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        for name, choice, choices in (
            ('scale', scale, ('sum', 'mean', 'sqrt_l2')),
            ('scope', scope, ('user', 'causal')),
            ('gate', gate, ('none', 'tanh')),
        ):
            if choice not in choices:
                raise ValueError(
                    f"'{name}' needs to be one of {choices} (got {choice!r})"
                )
        for name, size in (
            ('channels', channels),
            ('hidden_size', hidden_size),
            ('num_layers', num_layers),
            ('num_tokens', num_tokens),
            ('rank', rank),
            ('hidden_channels', hidden_channels),
        ):
            if size is not None and size < 1:
                raise ValueError(f"'{name}' needs to be positive (got {size})")
        if not 0 <= dropout < 1:
            raise ValueError(f"'dropout' needs to lie in [0, 1) (got {dropout})")
        self.channels = channels
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_tokens = num_tokens
        self.rank = rank
        self.scale = scale
        self.scope = scope
        self.gate = gate
        self.dropout = dropout
        self.hidden_channels = hidden_channels
        self.pool = pool
        self.rotary = rotary

        shape = (num_layers, num_tokens, hidden_size)
        self.key_bias = torch.nn.Parameter(torch.empty(shape))
        self.value_bias = torch.nn.Parameter(torch.empty(shape))
        self.key_norm = torch.nn.RMSNorm(hidden_size, eps=EPS)
        self.value_norm = torch.nn.RMSNorm(hidden_size, eps=EPS)
        if gate == 'tanh':
            self.layer_gate = torch.nn.Parameter(torch.empty(num_layers))
        if pool:
            self.pooling = SecondOrderAggregation(channels, rank)
            width = self.pooling.out_channels
            widths = [width, hidden_channels or width, hidden_size]
            self.key_mlp = _mlp(widths, dropout)
            self.value_mlp = _mlp(widths, dropout)
            self.key_state_norm = torch.nn.RMSNorm(hidden_size, eps=EPS)
            self.value_state_norm = torch.nn.RMSNorm(hidden_size, eps=EPS)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        torch.nn.init.normal_(self.key_bias)
        torch.nn.init.normal_(self.value_bias)
        for module in self.children():
            cast(Any, module).reset_parameters()
        if self.gate == 'tanh':
            torch.nn.init.zeros_(self.layer_gate)

    def forward(
        self, x: Tensor, mask: Tensor, rotation: Rotation | None = None
    ) -> PrefixStates:
        r"""Returns the prefix of each row or of each of its positions.

        Args:
            x: Item embeddings of the histories, oldest first,
                :math:`[B, T, C]`. Padding may lie on either side.
            mask: Which positions hold an item, boolean, :math:`[B, T]`.
            rotation: Cosines and sines of the language model for the first
                :math:`P` positions, each :math:`[P, d]` (``rotary=True``).

        Returns:
            States of shape :math:`[B, 1, H]` (``scope='user'``),
            :math:`[B, T, H]` (``'causal'``) or :math:`[1, 1, H]`
            (``pool=False``).

        Raises:
            ValueError: If the shapes are not those above, or ``rotation`` is
                missing or not wanted.
        """
        if x.dim() != 3 or x.shape[-1] != self.channels or mask.shape != x.shape[:2]:
            raise ValueError(
                f"'x' and 'mask' need the shapes [B, T, {self.channels}] and [B, T] "
                f'(got {list(x.shape)} and {list(mask.shape)})'
            )
        pooled = self.pooled(x, mask) if self.pool else None
        return self._states(pooled, rotation)

    def instruction(self, rotation: Rotation | None = None) -> PrefixStates:
        r"""Returns the prefix of tokens that see no item, :math:`[1, 1, H]`.

        That is the prefix of :math:`\mathbf{G} = 0`, the same for all rows.

        Args:
            rotation: As in :meth:`forward`.

        Raises:
            ValueError: With ``scope='user'``, whose prefix every token of a
                row sees, or if ``rotation`` is missing or not wanted.
        """
        if not self.pool:
            return self._states(None, rotation)
        if self.scope == 'user':
            raise ValueError(
                "'scope' needs to be 'causal' for instruction tokens that rows share "
                "(got 'user'): the prefix of a user changes their states"
            )
        weight = self.key_mlp.lins[0].weight
        return self._states(weight.new_zeros(1, 1, weight.shape[1]), rotation)

    def pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        r"""Returns the pooled, scaled and flattened :math:`\mathbf{G}`.

        It is taken in at least single precision and has the shape
        :math:`[B, 1, r^2]`, or :math:`[B, T, r^2]` with ``scope='causal'``.
        """
        mask = mask.bool()
        weight = self.pooling.weight
        dtype = torch.float32 if weight is None else weight.dtype
        x = x.to(torch.promote_types(x.dtype, dtype))
        with torch.autocast(x.device.type, enabled=False):
            if self.scope == 'causal':
                # Not a product with the mask: padding may hold NaN.
                x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
                x = x if weight is None else x @ weight
                outer = x.unsqueeze(-1) * x.unsqueeze(-2)
                pooled, count = outer.flatten(2).cumsum(1), mask.cumsum(1)
            else:
                row = mask.nonzero()[:, 0]
                pooled = self.pooling(x[mask], row, dim_size=mask.shape[0])
                pooled, count = pooled.unsqueeze(1), mask.sum(1, keepdim=True)
            if self.scale == 'sum':
                return pooled
            pooled = pooled / count.clamp(min=1).unsqueeze(-1)
            if self.scale == 'mean':
                return pooled
            # Offset inside and out: no infinite slope at zero, and no step.
            root = pooled.sign() * ((pooled.abs() + 1e-8).sqrt() - 1e-4)
            return F.normalize(root, dim=-1)

    def _states(self, pooled: Tensor | None, rotation: Rotation | None) -> PrefixStates:
        if self.rotary != (rotation is not None):
            got = 'None' if rotation is None else 'cosines and sines'
            raise ValueError(
                f"'rotation' needs to be given with rotary=True, and only then (got "
                f'{got} with rotary={self.rotary})'
            )
        if pooled is None:
            key = value = self.key_bias.new_zeros(1, 1, self.hidden_size)
        else:
            key = _generate(self.key_mlp, self.key_state_norm, pooled)
            value = _generate(self.value_mlp, self.value_state_norm, pooled)
        return PrefixStates(
            key,
            value,
            self.key_bias,
            self.value_bias,
            self.key_norm.weight,
            self.value_norm.weight,
            self.layer_gate if self.gate == 'tanh' else None,
            EPS,
            rotation,
        )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.channels}, {self.hidden_size}, '
            f'num_layers={self.num_layers}, num_tokens={self.num_tokens}, '
            f'rank={self.rank}, scale={self.scale!r}, scope={self.scope!r}, '
            f'gate={self.gate!r}, pool={self.pool}, rotary={self.rotary})'
        )


def _mlp(widths: list[int], dropout: float) -> MLP:
    return MLP(widths, norm=None, act='gelu', plain_last=False, dropout=float(dropout))


def _generate(mlp: MLP, norm: torch.nn.RMSNorm, pooled: Tensor) -> Tensor:
    out = mlp(pooled.to(mlp.lins[0].weight.dtype))
    with torch.autocast(out.device.type, enabled=False):
        return norm(out.to(norm.weight.dtype))
