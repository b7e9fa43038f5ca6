"""Second-order pooling of sets."""

import torch
from torch import Tensor
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.inits import glorot
from torch_geometric.typing import OptTensor


class SecondOrderAggregation(Aggregation):
    r"""The bilinear second-order pooling of `"HeLLM: Multi-Modal Hypergraph
    Enhanced LLM Learning for Recommendation"
    <https://arxiv.org/abs/2504.10541>`_, which sums the outer products of the
    elements of a set with themselves.

    .. math::
        \mathbf{g} = \mathrm{vec} \left( {(\mathbf{X} \mathbf{W})}^{\top}
        (\mathbf{X} \mathbf{W}) \right)

    The elements may come in any order, and an empty set gives zeros. Sets are
    multiplied together with those of a similar size, padded to the next power
    of two: that takes less than :math:`2Tr` numbers beside the output for
    :math:`T` elements however uneven the sets are, where the outer products of
    all elements would take :math:`Tr^2`, and it makes the result of a set
    independent of the other sets in the batch.

    Args:
        in_channels (int): Size of each element.
        rank (int, optional): The number of columns :math:`r` of the trainable
            map :math:`\mathbf{W}`; if :obj:`None`, there is no map and
            :math:`r` is :obj:`in_channels`. (default: :obj:`None`)

    Shapes:
        - **input:**
          elements :math:`(T, F_{in})`,
          set of each element :math:`(T)` or pointers :math:`(B + 1)`
        - **output:** sets :math:`(B, r^2)`

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(self, in_channels: int, rank: int | None = None) -> None:
        super().__init__()
        for name, value in (('in_channels', in_channels), ('rank', rank)):
            if value is not None and value < 1:
                raise ValueError(f"'{name}' needs to be at least 1 (got {value})")
        self.in_channels = in_channels
        self.rank = rank
        self.out_channels = (in_channels if rank is None else rank) ** 2
        if rank is None:
            self.register_parameter('weight', None)
        else:
            self.weight = torch.nn.Parameter(torch.empty(in_channels, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets the map, if there is one."""
        glorot(self.weight)

    def forward(
        self,
        x: Tensor,
        index: OptTensor = None,
        ptr: OptTensor = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): Elements, shape :math:`[T, F_{in}]`.
            index (torch.Tensor, optional): Set of each element, shape
                :math:`[T]`, in any order. If neither it nor :obj:`ptr` is
                given, all elements are one set. (default: :obj:`None`)
            ptr (torch.Tensor, optional): First element of each set and the end
                of the last, shape :math:`[B + 1]`. (default: :obj:`None`)
            dim_size (int, optional): The number of sets :math:`B`.
                (default: :obj:`None`)
            dim (int, optional): The dimension of the elements.
                (default: :obj:`-2`)

        Raises:
            ValueError: If shapes do not fit.
        """
        self.assert_two_dimensional_input(x, dim)
        if x.size(-1) != self.in_channels:
            raise ValueError(
                f"'x' needs to have 'in_channels' = {self.in_channels} columns "
                f'(got {x.size(-1)})'
            )
        if ptr is not None:
            perm, size = None, ptr.diff()
            ends = ptr[:1].tolist() + ptr[-1:].tolist()
            if ends != [0, x.size(0)] or bool((size < 0).any()):
                raise ValueError(
                    f"'ptr' needs to ascend from 0 to the number of elements, "
                    f'{x.size(0)} (got {ptr})'
                )
        else:
            whole = not index.is_floating_point()
            if not whole or index.shape != x.shape[:1] or bool((index < 0).any()):
                raise ValueError(
                    f"'index' needs a set, from 0, of each of {x.size(0)} elements "
                    f'(got {index})'
                )
            perm = index.argsort(stable=True)
            size = torch.bincount(index, minlength=dim_size or 0)
            if dim_size is not None and size.numel() > dim_size:
                raise ValueError(
                    f"'dim_size' needs to exceed the largest entry of 'index', "
                    f'{size.numel() - 1} (got {dim_size})'
                )
        if self.weight is not None:
            x = x @ self.weight
        return self._pool(x if perm is None else x[perm], size)

    @staticmethod
    def _pool(x: Tensor, size: Tensor) -> Tensor:
        """Pools consecutive elements into sets of the given sizes."""
        if size.numel() == 0:
            return x.new_zeros(0, x.size(-1) ** 2)
        start = size.cumsum(0) - size
        exponent = torch.frexp(size.float() - 0.5).exponent  # 2^e >= size
        x = torch.cat([x, x.new_zeros(1, x.size(-1))])  # its last row pads

        sets, pooled = [], []
        for e in exponent.unique().tolist():
            sets.append((exponent == e).nonzero().view(-1))
            slot = torch.arange(2**e, device=x.device)
            source = start[sets[-1]].view(-1, 1) + slot
            inside = slot < size[sets[-1]].view(-1, 1)
            rows = x[torch.where(inside, source, x.size(0) - 1)]
            pooled.append(rows.mT @ rows)
        order = torch.cat(sets).argsort()
        return torch.cat(pooled)[order].flatten(1)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.in_channels}, rank={self.rank})'
