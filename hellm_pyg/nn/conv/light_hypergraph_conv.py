"""Weightless hypergraph convolution in two hops."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptTensor
from torch_geometric.utils import scatter

from hellm_pyg.nn.conv.incidence import (
    Incidence,
    check_index,
    is_matrix,
    sparse_size,
)
from hellm_pyg.nn.spmm import spmm

NORMALIZATIONS = ('hgnn', 'rw', 'clique_sym', 'clique_rw')


class _Scale(NamedTuple):
    """Factors before, between and after the hops, and that of the node itself."""

    inner: OptTensor = None  # [N]
    edge: OptTensor = None  # [M]
    outer: OptTensor = None  # [N]
    loop: OptTensor = None  # [N]


class LightHypergraphConv(MessagePassing):
    r"""The hypergraph convolution of `"Hypergraph Neural Networks"
    <https://arxiv.org/abs/1809.09401>`_ without its weight matrix and
    non-linearity, as :class:`~torch_geometric.nn.conv.LGConv` is to
    :class:`~torch_geometric.nn.conv.GCNConv`.

    With the incidence matrix :math:`\mathbf{H}`, hyperedge weights
    :math:`\mathbf{W}` and :math:`\mathbf{A} = \mathbf{H} \mathbf{W}
    \mathbf{H}^{\top}`, one of

    .. math::
        \textrm{hgnn:} \quad \mathbf{X}^{\prime} &= \mathbf{D}_v^{-1/2}
        \mathbf{H} \mathbf{W} \mathbf{D}_e^{-1} \mathbf{H}^{\top}
        \mathbf{D}_v^{-1/2} \mathbf{X}

        \textrm{rw:} \quad \mathbf{X}^{\prime} &= \mathbf{D}_v^{-1}
        \mathbf{H} \mathbf{W} \mathbf{D}_e^{-1} \mathbf{H}^{\top} \mathbf{X}

        \textrm{clique\_sym:} \quad \mathbf{X}^{\prime} &= \mathbf{D}_A^{-1/2}
        \mathbf{A} \mathbf{D}_A^{-1/2} \mathbf{X}

        \textrm{clique\_rw:} \quad \mathbf{X}^{\prime} &=
        {(\mathbf{D}_A - \mathrm{diag}(\mathbf{A}))}^{-1}
        (\mathbf{A} - \mathrm{diag}(\mathbf{A})) \mathbf{X}

    where :math:`\mathbf{D}_v`, :math:`\mathbf{D}_e` and :math:`\mathbf{D}_A`
    hold the row sums of :math:`\mathbf{H} \mathbf{W}`,
    :math:`\mathbf{H}^{\top}` and :math:`\mathbf{A}`; the inverse of a degree
    of zero is zero. No :math:`N \times N` matrix is built: features go from
    nodes to hyperedges and back. An incidence given twice counts once.

    The graph may be a plain :obj:`hyperedge_index`, which is gathered and
    scattered and works in a full graph of :func:`torch.compile`; or an
    :class:`~torch_geometric.EdgeIndex`, a torch CSR tensor or a
    :class:`torch_sparse.SparseTensor`, for which each hop is one sparse
    product, many times faster. Its matrices are built at the first
    call and kept for as long as that graph object lives, or until it is
    changed in place; so hand in the same object each time. In a full graph an
    :class:`~torch_geometric.EdgeIndex` is scattered, too (torch 2.10 or later).

    Args:
        normalization (str, optional): One of :obj:`"hgnn"`, :obj:`"rw"`,
            :obj:`"clique_sym"` and :obj:`"clique_rw"`.
            (default: :obj:`"hgnn"`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`, but for
            :obj:`flow` and :obj:`node_dim`, which are fixed.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F)`,
          incidence :math:`(|\mathcal{V}|, |\mathcal{E}|)`,
          hyperedge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, F)`

    Raises:
        ValueError: If :obj:`normalization` is unknown or :obj:`aggr` is not a
            sum.
    """

    def __init__(self, normalization: str = 'hgnn', **kwargs: Any) -> None:
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"'normalization' needs to be one of {list(NORMALIZATIONS)} "
                f"(got '{normalization}')"
            )
        if kwargs.setdefault('aggr', 'add') not in ('add', 'sum'):
            raise ValueError(f"'aggr' needs to be 'add' (got {kwargs['aggr']!r})")
        super().__init__(flow='source_to_target', node_dim=0, **kwargs)
        self.normalization = normalization
        self.reset_parameters()

    def forward(
        self,
        x: Tensor,
        hyperedge_index: Adj,
        hyperedge_weight: OptTensor = None,
        num_edges: int | None = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): Node features
                :math:`\mathbf{X} \in \mathbb{R}^{N \times F}`.
            hyperedge_index (torch.Tensor or EdgeIndex or SparseTensor): The
                incidence :math:`\mathbf{H}` of shape :math:`[N, M]`: an index
                of shape :math:`[2, nnz]` from nodes to hyperedges, or a sparse
                matrix whose values are the memberships
                :math:`\mathbf{H}_{ie} \geq 0`.
            hyperedge_weight (torch.Tensor, optional): Hyperedge weights
                :math:`\mathbf{W} \in \mathbb{R}_{\geq 0}^M`; they get
                gradients, also through the degrees. Checking their sign reads
                the device once. (default: :obj:`None`)
            num_edges (int, optional): The number of hyperedges :math:`M`.
                (default: :obj:`None`)

        Raises:
            ValueError: If shapes, indices or weights do not fit.
        """
        num_edges = _check(x, hyperedge_index, hyperedge_weight, num_edges)
        # Degrees of hundreds and sums of thousands exceed 16 bits:
        out = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = None if hyperedge_weight is None else hyperedge_weight.to(out.dtype)

        if isinstance(hyperedge_index, EdgeIndex) and (
            torch.compiler.is_compiling() or self.explain
        ):
            hyperedge_index = hyperedge_index.as_tensor()
        if is_matrix(hyperedge_index):
            out = self._multiply(out, hyperedge_index, weight, num_edges)
        else:
            out = self._scatter(out, hyperedge_index, weight, num_edges)
        return out.to(x.dtype)

    def _scatter(
        self, x: Tensor, index: Tensor, weight: OptTensor, num_edges: int | None
    ) -> Tensor:
        index, value, num_edges = _distinct(index, x, num_edges)
        size = (x.size(0), num_edges)
        scale = _scale(self.normalization, index, value, weight, size)
        into = {'edge_index': index, 'size': size}
        back = {'edge_index': index.flip([0]), 'size': size[::-1]}
        shared = {'value': value, 'transposed': None}
        return self._hops(x, scale, {**into, **shared}, {**back, **shared})

    @torch.compiler.disable
    def _multiply(
        self, x: Tensor, graph: Adj, weight: OptTensor, num_edges: int | None
    ) -> Tensor:
        incidence = Incidence.of(graph, x.size(0), num_edges)
        if weight is None:
            inner, outer, scale = incidence.cached(
                (self.normalization, x.dtype),
                lambda: _fold(self.normalization, incidence, x.dtype),
            )
        else:
            inner = outer = incidence.cached(
                x.dtype, lambda: incidence.pair(incidence.value.to(x.dtype))
            )
            index, value = incidence.index, incidence.value.to(x.dtype)
            scale = _scale(self.normalization, index, value, weight, incidence.size)
        into = {'edge_index': inner[1], 'transposed': inner[0]}
        back = {'edge_index': outer[0], 'transposed': outer[1]}
        shared = {'value': None, 'size': None}
        return self._hops(x, scale, {**into, **shared}, {**back, **shared})

    def _hops(
        self, x: Tensor, scale: _Scale, into: dict[str, Any], back: dict[str, Any]
    ) -> Tensor:
        # propagate_type: (x: Tensor, value: OptTensor, transposed: OptTensor)
        out = self.propagate(x=_times(scale.inner, x), **into)
        out = self.propagate(x=_times(scale.edge, out), **back)
        out = _times(scale.outer, out)
        if scale.loop is not None:
            out = torch.addcmul(out, scale.loop.view(-1, 1), x, value=-1)
        return out

    def message(self, x_j: Tensor, value: Tensor) -> Tensor:
        """Weighs the features at the other end of each entry."""
        return value.view(-1, 1) * x_j

    def message_and_aggregate(
        self, adj_t: Adj, x: Tensor, transposed: Tensor
    ) -> Tensor:
        """Multiplies the incidence, or its transpose, with the features."""
        return spmm(adj_t, transposed, x)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(normalization='{self.normalization}')"


def _check(
    x: Tensor, graph: Adj, weight: OptTensor, num_edges: int | None
) -> int | None:
    """Checks shapes and signs, and returns the number of hyperedges if known."""
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(
            f"'x' needs to hold floats of shape [num_nodes, num_features] "
            f'(got {x.dtype} of shape {list(x.shape)})'
        )
    if not is_matrix(graph) and (
        graph.dim() != 2 or graph.size(0) != 2 or graph.dtype != torch.long
    ):
        raise ValueError(
            f"'hyperedge_index' needs to be int64 of shape [2, nnz], or a sparse "
            f'matrix (got {graph.dtype} of shape {list(graph.shape)})'
        )
    rows, columns = sparse_size(graph)
    if rows is not None and rows != x.size(0):
        raise ValueError(
            f"'x' needs one row for each of the {rows} nodes of 'hyperedge_index' "
            f'(got {x.size(0)})'
        )
    if None not in (columns, num_edges) and columns != num_edges:
        raise ValueError(
            f"'num_edges' needs to be the number of columns of 'hyperedge_index', "
            f'{columns} (got {num_edges})'
        )
    num_edges = columns if num_edges is None else num_edges
    if num_edges is not None and num_edges < 0:
        raise ValueError(f"'num_edges' must not be negative (got {num_edges})")
    if weight is None:
        return num_edges
    if weight.dim() != 1 or num_edges not in (None, weight.numel()):
        shape = 'num_edges' if num_edges is None else num_edges
        raise ValueError(
            f"'hyperedge_weight' needs to be of shape [{shape}] "
            f'(got {list(weight.shape)})'
        )
    if not torch.compiler.is_compiling() and not bool(
        ((weight >= 0) & (weight < float('inf'))).all()
    ):
        raise ValueError(
            f"'hyperedge_weight' needs to be finite and >= 0 (got values from "
            f'{float(weight.min())} to {float(weight.max())}); train its '
            f'softplus or clamp it'
        )
    return weight.numel()


def _distinct(
    index: Tensor, x: Tensor, num_edges: int | None
) -> tuple[Tensor, Tensor, int]:
    """Gives weight 1 to each distinct entry and 0 to its repetitions.

    Nothing here depends on values read from the device. If the number of
    hyperedges is unknown they are numbered anew, as there can be no more of
    them than entries.
    """
    num_nodes = x.size(0)
    if x.device.type == 'cpu' and not torch.compiler.is_compiling():
        most = torch.iinfo(torch.long).max // max(num_nodes, 1)
        limit = most if num_edges is None else num_edges
        check_index(index[0], index[1], num_nodes, limit)
    key, perm = (index[1] * num_nodes + index[0]).sort(stable=True)
    value = torch.empty(key.size(0), dtype=x.dtype, device=x.device)
    value[perm] = _starts(key).to(x.dtype)
    if num_edges is None:
        edge = torch.empty_like(key)
        edge[perm] = _starts(index[1][perm]).cumsum(0) - 1
        index, num_edges = torch.stack([index[0], edge]), key.size(0)
    return index, value, num_edges


def _starts(index: Tensor) -> Tensor:
    """Marks the first of each run of equal numbers."""
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    return first


def _fold(
    normalization: str, incidence: Incidence, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], _Scale]:
    """Multiplies the factors of a graph without weights into its matrices."""
    index, value = incidence.index, incidence.value.to(dtype)
    scale = _scale(normalization, index, value, None, incidence.size)
    inner = outer = value
    for factor, axis in ((scale.inner, 0), (scale.edge, 1)):
        inner = inner if factor is None else inner * factor[index[axis]]
    if scale.outer is not None:
        outer = outer * scale.outer[index[0]]
    return incidence.pair(inner), incidence.pair(outer), _Scale(loop=scale.loop)


def _scale(
    normalization: str,
    index: Tensor,
    value: Tensor,
    weight: OptTensor,
    size: tuple[int, int],
) -> _Scale:
    """The diagonal factors of a normalisation."""
    node, edge = index[0], index[1]
    share = value if weight is None else value * weight[edge]
    num_members = scatter(value, edge, dim_size=size[1], reduce='sum')

    def per_node(entry: Tensor) -> Tensor:
        return scatter(entry, node, dim_size=size[0], reduce='sum')

    if normalization in ('hgnn', 'rw'):
        mean = _inverse(num_members)
        mean = mean if weight is None else mean * weight
        if normalization == 'rw':
            return _Scale(edge=mean, outer=_inverse(per_node(share)))
        root = _inverse(per_node(share), power=0.5)
        return _Scale(inner=root, edge=mean, outer=root)
    if normalization == 'clique_sym':
        root = _inverse(per_node(share * num_members[edge]), power=0.5)
        return _Scale(inner=root, edge=weight, outer=root)
    # The degree without the diagonal is summed as such, as a difference of two
    # sums would leave a remainder where it has to vanish:
    degree = per_node(share * (num_members[edge] - value))
    mean = _inverse(degree)
    return _Scale(edge=weight, outer=mean, loop=mean * per_node(share * value))


def _inverse(degree: Tensor, power: float = 1.0) -> Tensor:
    """Its negative power, and 0 with a gradient of 0 where there is nothing."""
    some = degree > torch.finfo(degree.dtype).tiny
    return torch.where(some, torch.where(some, degree, 1.0).pow(-power), 0.0)


def _times(factor: OptTensor, x: Tensor) -> Tensor:
    return x if factor is None else factor.view(-1, 1) * x
