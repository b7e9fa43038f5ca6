"""Item embeddings as tokens of a language model."""

from __future__ import annotations

from torch import Tensor, nn
from torch_geometric.nn import MLP


class FusedProjector(nn.Module):
    r"""Turns the concatenated embeddings of an item into one soft token.

    .. math::
        \mathbf{t}_j = \mathbf{W}_2 \, \mathrm{GELU}\left( \mathbf{W}_1
        \left[ \mathbf{g}_j \, \Vert \, \mathbf{q}_j \right] + \mathbf{b}_1
        \right) + \mathbf{b}_2

    Args:
        in_channels (int): Width of the concatenated embeddings.
        out_channels (int): Width :math:`H` of the language model.
        num_layers (int): Number of layers; one is a linear map, as in E4SRec.
            (default: :obj:`2`)

    Raises:
        ValueError: If ``num_layers`` is not positive.

    Shapes:
        - **input:** :math:`(*, D)`
        - **output:** :math:`(*, H)`
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int = 2
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"'num_layers' needs to be at least 1 (got {num_layers})")
        self.mlp = MLP(
            [in_channels, *[out_channels] * num_layers],
            norm=None,
            act='gelu',
            plain_last=True,
        )

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.mlp.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the soft tokens of the given item states."""
        return self.mlp(x)

    def __repr__(self) -> str:
        channels = self.mlp.channel_list
        return f'{self.__class__.__name__}({channels[0]}, {channels[-1]})'
