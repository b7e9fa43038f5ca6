"""What the multimodal baselines share: features, item graphs, a loss."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.utils import scatter, to_torch_csr_tensor


class ItemFeatures(torch.nn.Module):
    r"""The features ``x_<m>`` of the data's items, missing rows being zero.

    A row is missing if all its entries are NaN or all are zero. Trainable
    features are the data's plus an offset :math:`\mathbf{O}^m` that starts at
    zero,

    .. math::
        \mathbf{f}^m_i = \mathbf{x}^m_i + \mathbf{o}^m_i,

    so that a missing row, which starts at zero, is learned as well where a
    model reads it.

    Args:
        num_items: Number of items :math:`I`.
        feature_dims: Width of each modality.
        trainable: Whether the features are fine-tuned.

    Raises:
        ValueError: If there is no modality, or the data does not fit.
    """

    def __init__(
        self, num_items: int, feature_dims: Mapping[str, int], trainable: bool = False
    ) -> None:
        super().__init__()
        if not feature_dims or min(feature_dims.values()) < 1:
            raise ValueError(
                "'feature_dims' needs at least one modality and positive widths (got "
                f'{dict(feature_dims)}); without features use LightGCN'
            )
        self.dims = {name: feature_dims[name] for name in sorted(feature_dims)}
        self.offset = torch.nn.ParameterDict()
        if trainable:
            for name, width in self.dims.items():
                self.offset[name] = torch.nn.Parameter(torch.zeros(num_items, width))
        self._kept: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def reset_parameters(self) -> None:
        """Sets the offsets to zero."""
        for offset in self.offset.values():
            torch.nn.init.zeros_(offset)

    def raw(self, data: HeteroData, name: str) -> tuple[Tensor, Tensor]:
        """Returns the data's features [I, F] and where there are any, bool [I].

        They are kept for as long as the data holds the same tensor.
        """
        source = data['item'].get(f'x_{name}')
        if source is None or source.size(1) != self.dims[name]:
            got = 'None' if source is None else f'shape {list(source.shape)}'
            raise ValueError(
                f"The data needs 'x_{name}' of {self.dims[name]} channels as in "
                f"'feature_dims' (got {got}); build the model for these data"
            )
        kept = self._kept.get(name)
        if kept is None or kept[0] is not source:
            with torch.inference_mode(False):
                x = source.detach().nan_to_num(0.0)
                kept = self._kept[name] = source, x, (x != 0).any(dim=1)
        return kept[1], kept[2]

    def forward(
        self, data: HeteroData, name: str, index: Tensor | None = None
    ) -> Tensor:
        """Returns the features of all items [I, F], or of some."""
        x, _ = self.raw(data, name)
        offset = self.offset[name] if name in self.offset else None
        if index is not None:
            x = x[index]
            offset = None if offset is None else offset[index]
        return x if offset is None else x.to(offset.dtype) + offset

    def present(self, data: HeteroData, name: str) -> Tensor:
        """Returns which items have the modality, bool of shape [I]."""
        return self.raw(data, name)[1]

    def extra_repr(self) -> str:
        """Names and widths."""
        return ', '.join(f'{name}={width}' for name, width in self.dims.items())


def triple_loss(user: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    r"""The ranking loss of each triple, several negatives being averaged.

    .. math::
        -\ln \sigma(\mathbf{e}_u^{\top} \mathbf{e}_i
        - \mathbf{e}_u^{\top} \mathbf{e}_j)

    Args:
        user: User vectors, :math:`[B, D]`.
        pos: Vectors of positive items, :math:`[B, D]`.
        neg: Vectors of negative items, :math:`[B, n, D]`.

    Returns:
        Losses, :math:`[B]`.
    """
    positive = (user * pos).sum(dim=-1, keepdim=True)
    negative = (user.unsqueeze(1) * neg).sum(dim=-1)
    return F.softplus(negative - positive).mean(dim=1)


def neighbor_pairs(data: HeteroData, name: str) -> Tensor:
    """Returns each item and its nearest neighbours, int64 of shape [2, nnz].

    Raises:
        ValueError: If the data has no neighbours of that modality.
    """
    relation = ('item', 'member_of', f'{name}_hyperedge')
    if relation not in data.edge_types:
        raise ValueError(
            f'The data has no relation {relation} (got {data.edge_types}); apply the '
            'transform KNNHyperedges first'
        )
    pairs = data[relation].edge_index
    return pairs.as_tensor() if isinstance(pairs, EdgeIndex) else pairs


def normalize_pairs(pairs: Tensor, value: Tensor, num_items: int) -> Tensor:
    r"""Normalises a sparse matrix by its row sums on both sides.

    .. math::
        \mathbf{D}^{-1/2} \mathbf{S} \mathbf{D}^{-1/2}, \qquad
        d_i = \sum_j s_{ij}

    An item whose row sum is not positive gets the factor 0.

    Args:
        pairs: Row and column of each entry, :math:`[2, \mathrm{nnz}]`.
        value: The entries, :math:`[\mathrm{nnz}]`.
        num_items: Number of rows and columns.

    Returns:
        The normalised entries, :math:`[\mathrm{nnz}]`.
    """
    degree = scatter(value, pairs[0], dim_size=num_items, reduce='sum')
    usable = degree > 0
    scale = torch.where(usable, degree.where(usable, 1.0).rsqrt(), 0.0)
    return value * scale[pairs[0]] * scale[pairs[1]]


def csr_matrices(pairs: Tensor, value: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns a square sparse matrix and its transpose as CSR tensors."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*Sparse CSR tensor support.*')
        return (
            to_torch_csr_tensor(pairs, value, size),
            to_torch_csr_tensor(pairs.flip(0), value, size),
        )
