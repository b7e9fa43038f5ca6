"""What the multimodal baselines share: features and a ranking loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.features import present_rows
from hellm_pyg.nn.directions import directions
from hellm_pyg.nn.models.kept import Kept
from hellm_pyg.nn.parameter_names import check_parameter_names


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
        ValueError: If there is no modality or torch keeps no parameters by its name, or
            the data does not fit: other widths, no row for each item, NaN or Inf in a
            row that is not missing as a whole.
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
        check_parameter_names('feature_dims', self.dims)
        self.offset = torch.nn.ParameterDict()
        if trainable:
            for name, width in self.dims.items():
                self.offset[name] = torch.nn.Parameter(torch.zeros(num_items, width))
        self._kept: dict[str, Kept[tuple[Tensor, Tensor]]] = {
            name: Kept() for name in self.dims
        }

    def reset_parameters(self) -> None:
        """Sets the offsets to zero."""
        for offset in self.offset.values():
            torch.nn.init.zeros_(offset)

    def raw(self, data: HeteroData, name: str) -> tuple[Tensor, Tensor]:
        """Returns the data's features [I, F] and where there are any, bool [I].

        They are kept for as long as the data holds the same tensor, unchanged.

        Raises:
            ValueError: If the data does not fit.
        """
        source = data['item'].get(f'x_{name}')
        if source is None or source.shape[-1:] != (self.dims[name],):
            got = 'None' if source is None else f'shape {list(source.shape)}'
            raise ValueError(
                f"The data needs 'x_{name}' of {self.dims[name]} channels as in "
                f"'feature_dims' (got {got}); build the model for these data"
            )

        def make() -> tuple[Tensor, Tensor]:
            present = present_rows(data, name)
            return source.where(present.unsqueeze(1), 0.0), present

        return self._kept[name].get([source], make)

    def forward(
        self, data: HeteroData, name: str, index: Tensor | None = None
    ) -> Tensor:
        """Returns the features of all items [I, F], or of some."""
        x, _ = self.raw(data, name)
        offset: Tensor | None = self.offset.get(name)
        if index is not None:
            x = x[index]
            offset = None if offset is None else F.embedding(index, offset)
        return x if offset is None else x.to(offset.dtype) + offset

    def present(self, data: HeteroData, name: str) -> Tensor:
        """Returns which items have the modality, bool of shape [I]."""
        return self.raw(data, name)[1]

    def extra_repr(self) -> str:
        """Names and widths."""
        return ', '.join(f'{name}={width}' for name, width in self.dims.items())


class ProjectedFeatures(ItemFeatures):
    r"""Features of all modalities, each with a linear layer to a common width.

    .. math::
        \mathbf{m}_i = \mathbf{W}_m \mathbf{f}^m_i + \mathbf{b}_m

    Args:
        num_items: Number of items :math:`I`.
        feature_dims: Width of each modality.
        channels: The common width :math:`D`.
        trainable: Whether the features are fine-tuned.
        bias: Whether there is :math:`\mathbf{b}_m`.

    Raises:
        ValueError: If there is no modality or no channel, or the data does not fit.
    """

    def __init__(
        self,
        num_items: int,
        feature_dims: Mapping[str, int],
        channels: int,
        trainable: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__(num_items, feature_dims, trainable)
        if channels < 1:  # which models have as their 'embedding_dim'
            raise ValueError(f"'embedding_dim' must be positive (got {channels})")
        self.linear = torch.nn.ModuleDict(
            {
                name: torch.nn.Linear(dim, channels, bias)
                for name, dim in self.dims.items()
            }
        )

    def reset_parameters(self) -> None:
        """Draws the layers anew and sets the offsets to zero."""
        super().reset_parameters()
        for name, parameter in self.linear.named_parameters():
            if name.endswith('weight'):
                torch.nn.init.xavier_normal_(parameter)
            else:
                torch.nn.init.zeros_(parameter)

    def project(
        self,
        data: HeteroData,
        name: str,
        index: Tensor | None = None,
        normalize: bool = False,
    ) -> Tensor:
        """Returns the projected features of all items [I, D], or of some.

        Args:
            data: The data.
            name: The modality.
            index: Items; None for all.
            normalize: Whether rows have unit length before the layer.
        """
        linear = self.linear[name]
        x = self(data, name, index).to(linear.weight.dtype)
        return linear(directions(x) if normalize else x)


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
