"""Sparse item-item graphs of nearest neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.utils import scatter, to_torch_csr_tensor


def plain_tensor(edge_index: Tensor) -> Tensor:
    """Returns the ``[2, nnz]`` tensor of an edge index of either kind."""
    return edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index


def neighbor_pairs(data: HeteroData, name: str) -> Tensor:
    """Returns each item and its nearest neighbours, the data's edge index.

    Raises:
        ValueError: If the data has no neighbours of that modality.
    """
    relation = ('item', 'member_of', f'{name}_hyperedge')
    if relation not in data.edge_types:
        raise ValueError(
            f'The data has no relation {relation} (got {data.edge_types}); apply the '
            'transform KNNHyperedges first'
        )
    return data[relation].edge_index


def neighbor_matrix(data: HeteroData, names: Sequence[str]) -> Tensor:
    """Returns the nearest other items of every item in some modalities, one beside
    the other, int64 of shape :math:`[I, K]`.

    An item that a modality lacks has itself in its places.

    Raises:
        ValueError: If the data has no neighbours of a modality, or not as many of
            every item.
    """
    own = torch.arange(int(data['item'].num_nodes)).unsqueeze(1)
    columns = []
    for name in names:
        both = plain_tensor(neighbor_pairs(data, name)).cpu()
        itself = both[0] == both[1]
        present, both = both[0, itself].unique(), both[:, ~itself]
        k = both.size(1) // max(present.numel(), 1)
        if k == 0:
            raise ValueError(
                f"'data.knn' needs to be 2 or more, an item and a neighbour (got no "
                f"pairs of two items with modality '{name}')"
            )
        for pairs in (both, both.flip(0)):  # the direction 'col' is the other
            item, count = pairs[0].unique(return_counts=True)
            if torch.equal(item, present) and bool((count == k).all()):
                break
        else:
            raise ValueError(
                f"'{name}_hyperedge' needs items with themselves and as many others "
                f'each; apply the transform KNNHyperedges'
            )
        column = own.repeat(1, k)
        column[present] = pairs[1, pairs[0].argsort(stable=True)].view(-1, k)
        columns.append(column)
    return torch.cat(columns, dim=1)


def cosines(pairs: Tensor, x: Tensor, block_size: int = 2**16) -> Tensor:
    r"""Returns the cosine similarity of each pair's rows of ``x``.

    Args:
        pairs: Rows, int64 of shape :math:`[2, \mathrm{nnz}]`.
        x: Features, :math:`[I, F]`.
        block_size: Number of pairs gathered at a time.
    """
    x = F.normalize(x.float(), dim=-1)
    blocks = pairs.split(block_size, dim=1)
    return torch.cat([(x[i] * x[j]).sum(dim=-1) for i, j in blocks])


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
    scale = root_inverse(degree)
    return value * scale[pairs[0]] * scale[pairs[1]]


def root_inverse(degree: Tensor) -> Tensor:
    """One over the root of each degree, 0 where it is not positive."""
    usable = degree > 0
    return torch.where(usable, degree.where(usable, 1.0).rsqrt(), 0.0)


def csr_matrices(pairs: Tensor, value: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns a square sparse matrix and its transpose as CSR tensors."""
    with (
        warnings.catch_warnings(),
        torch.sparse.check_sparse_tensor_invariants(enable=True),
    ):
        warnings.filterwarnings('ignore', '.*Sparse CSR tensor support.*')
        return (
            to_torch_csr_tensor(pairs, value, size),
            to_torch_csr_tensor(pairs.flip(0), value, size),
        )


def nearest_rows(x: Tensor, k: int, block_size: int = 1024) -> Tensor:
    r"""Returns the rows of the largest inner products with each row.

    Args:
        x: Vectors, :math:`[N, D]`.
        k: Number of rows to find.
        block_size: Number of rows compared with all at a time.

    Returns:
        Rows, best first, int64 of shape :math:`[N, \min(k, N)]`.
    """
    k = min(k, x.size(0))
    if k == 0:
        return x.new_empty(0, 0, dtype=torch.long)
    return torch.cat([(b @ x.t()).topk(k).indices for b in x.split(block_size)])
