"""Both compressed forms of an incidence matrix, built once for each graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import is_torch_sparse_tensor

from hellm_pyg.indices import check_indices

T = TypeVar('T')


class Incidence:
    r"""The incidence matrix :math:`\mathbf{H}` of a hypergraph.

    Entries are sorted by node and then by hyperedge, and each is held once.

    Args:
        row: Node of each entry, int64 of shape :math:`[nnz]`, in any order.
        col: Hyperedge of each entry, int64 of shape :math:`[nnz]`.
        value: Membership :math:`\mathbf{H}_{ie} \geq 0` of each entry;
            :obj:`None` means 1. Of entries given twice the largest counts.
        num_nodes: The number of nodes :math:`N`.
        num_edges: The number of hyperedges :math:`M`.

    Raises:
        ValueError: If an index lies outside the matrix or a membership is
            negative or not finite.

    Attributes:
        index: Node and hyperedge of each entry, shape :math:`[2, nnz]`.
        value: Membership of each entry, shape :math:`[nnz]`.
        size: The pair :math:`(N, M)`.
    """

    def __init__(
        self,
        row: Tensor,
        col: Tensor,
        value: Tensor | None,
        num_nodes: int,
        num_edges: int,
    ) -> None:
        check_index(row, col, num_nodes, num_edges)
        if value is None:
            value = torch.ones(row.numel(), device=row.device)
        elif not bool(((value >= 0) & (value < float('inf'))).all()):
            raise ValueError(
                f"'hyperedge_index' needs to hold finite values >= 0 "
                f'(got values from {value.min()} to {value.max()})'
            )
        key, inverse = torch.unique(row * num_edges + col, return_inverse=True)
        self.value = value.new_zeros(key.numel()).scatter_reduce_(
            0, inverse, value, 'amax', include_self=False
        )
        row, col = key // max(num_edges, 1), key % max(num_edges, 1)
        self.index = torch.stack([row, col])
        self.size = (num_nodes, num_edges)

        self._perm = col.argsort(stable=True)
        self._row_by_col = row[self._perm]
        self._rowptr = _pointer(row, num_nodes)
        self._colptr = _pointer(col, num_edges)
        self._cache: dict[Hashable, Any] = {}

    def pair(self, value: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns a matrix with these entries beside its transpose.

        Args:
            value: One value for each entry, shape :math:`[nnz]`.

        Returns:
            Torch CSR tensors of shapes :math:`[N, M]` and :math:`[M, N]`.
        """
        matrix = (self._rowptr, self.index[1], value, self.size)
        transposed = (
            self._colptr,
            self._row_by_col,
            value[self._perm],
            self.size[::-1],
        )
        with warnings.catch_warnings():  # torch calls its CSR support beta
            warnings.filterwarnings('ignore', '.*Sparse CSR tensor support')
            return (
                torch.sparse_csr_tensor(*matrix, check_invariants=False),
                torch.sparse_csr_tensor(*transposed, check_invariants=False),
            )

    def cached(self, key: Hashable, build: Callable[[], T]) -> T:
        """Returns what was built for this key, building it the first time."""
        if key not in self._cache:
            with torch.inference_mode(False), torch.no_grad():
                self._cache[key] = build()
        return self._cache[key]

    @classmethod
    def of(cls, graph: Any, num_nodes: int, num_edges: int | None) -> Incidence:
        r"""Returns the incidence of a graph, building it the first time.

        The result lives as long as :obj:`graph` does, and is built anew once
        the graph has been changed in place.

        Args:
            graph: An :class:`~torch_geometric.EdgeIndex`, a torch sparse tensor
                or a :class:`torch_sparse.SparseTensor` of shape :math:`[N, M]`.
            num_nodes: The number of nodes :math:`N`.
            num_edges: The number of hyperedges :math:`M`; if :obj:`None`, one
                more than the largest that has a member.

        Raises:
            ValueError: If :obj:`graph` holds anything but constants, or
                entries outside of these sizes.
        """
        mark = stamp(graph)
        known = _KNOWN.get(graph)
        # A graph first seen by an evaluation must serve training later:
        with torch.inference_mode(False), torch.no_grad():
            if known is None or mark is None or known[0] != mark:
                known = (mark, _entries(graph), {})
                if mark is not None:
                    _KNOWN[graph] = known
            _, (row, col, value), built = known
            if (num_nodes, num_edges) not in built:
                if num_edges is None:
                    count = int(col.max()) + 1 if col.numel() > 0 else 0
                else:
                    count = num_edges
                built[num_nodes, num_edges] = cls(row, col, value, num_nodes, count)
        return built[num_nodes, num_edges]


# Holds its keys weakly. Its values keep the tensors of the graph alive but never
# the graph, so that no identity in a stamp is used twice.
_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()


def check_index(row: Tensor, col: Tensor, num_nodes: int, num_edges: int) -> None:
    """Raises if an entry lies outside the matrix; reads the device."""
    check_indices('hyperedge_index[0]', row, num_nodes, 'nodes')
    check_indices('hyperedge_index[1]', col, num_edges, 'hyperedges')


def _pointer(index: Tensor, size: int) -> Tensor:
    count = torch.bincount(index, minlength=size)
    return torch.cat([count.new_zeros(1), count.cumsum(0)])


def is_matrix(graph: Any) -> bool:
    """Whether a graph is more than a plain index of its entries."""
    if isinstance(graph, (EdgeIndex, SparseTensor)):  # torch 2.6 compiles no unions
        return True
    return isinstance(graph, Tensor) and is_torch_sparse_tensor(graph)


def sparse_size(graph: Any) -> tuple[int | None, int | None]:
    """Numbers of nodes and hyperedges that a graph itself declares."""
    if isinstance(graph, EdgeIndex):
        return graph.sparse_size()
    return (graph.size(0), graph.size(1)) if is_matrix(graph) else (None, None)


def _entries(graph: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Node, hyperedge and membership of each entry."""
    if isinstance(graph, EdgeIndex):
        index = graph.as_tensor().long()
        return index[0], index[1], None
    if isinstance(graph, SparseTensor):
        row, col, value = graph.coo()
        learned = graph.requires_grad()
    else:
        coo = graph if graph.layout == torch.sparse_coo else graph.to_sparse_coo()
        (row, col), value = coo._indices(), coo._values()
        learned = graph.requires_grad
    if learned:
        raise ValueError(
            "'hyperedge_index' needs to hold constants (got values that require "
            "gradients); learn 'hyperedge_weight' instead"
        )
    if value is not None and (value.dim() != 1 or not value.is_floating_point()):
        raise ValueError(
            f"'hyperedge_index' needs to hold one float for each entry "
            f'(got {value.dtype} of shape {list(value.shape)})'
        )
    return row, col, value


def stamp(graph: Any) -> tuple[int, ...] | None:
    """Changes whenever a graph or tensor is changed in place; None if unknown."""
    if isinstance(graph, EdgeIndex):
        parts: list[Tensor | None] = [graph, graph.as_tensor()]
    elif isinstance(graph, SparseTensor):
        parts = list(graph.coo())
    elif graph.layout == torch.sparse_csr:
        parts = [graph, graph.crow_indices(), graph.col_indices(), graph.values()]
    elif graph.layout == torch.strided:
        parts = [graph]
    else:
        return None
    tensors = [part for part in parts if part is not None]
    if any(part.is_inference() for part in tensors):
        return None
    versions = tuple(part._version for part in tensors)
    if isinstance(graph, SparseTensor):  # its parts can be put in place of others
        return (*(id(part) for part in tensors), *versions)
    return versions
