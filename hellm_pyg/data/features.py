"""Which nodes have a modality."""

from __future__ import annotations

from torch import Tensor
from torch_geometric.data import HeteroData


def missing_rows(x: Tensor) -> Tensor:
    """Which rows of features are missing: all NaN or all zero, bool of shape [N]."""
    return x.isnan().all(dim=1) | (x == 0).all(dim=1)


def present_rows(data: HeteroData, name: str, node_type: str = 'item') -> Tensor:
    """Where the features ``x_<name>`` of nodes are, bool of shape :math:`[N]`.

    See :func:`missing_rows`.

    Raises:
        ValueError: If there is no row for each of the nodes, or NaN or Inf in a row
            that is not missing as a whole.
    """
    x, num_nodes = data[node_type][f'x_{name}'], data[node_type].num_nodes
    if x.dim() != 2 or x.size(0) != num_nodes:
        raise ValueError(
            f"'x_{name}' needs a row for each of the 'num_nodes' of '{node_type}', "
            f'[{num_nodes}, F] (got {list(x.shape)})'
        )
    missing = missing_rows(x)
    broken = ~x.isfinite().all(dim=1) & ~missing
    if bool(broken.any()):
        rows = broken.nonzero().view(-1).tolist()
        raise ValueError(
            f"'x_{name}' needs rows that are finite, or missing as a whole as NaN (got "
            f'NaN or Inf in {len(rows)} rows, the first of them {rows[0]})'
        )
    return ~missing
