"""Interactions and item features as one heterogeneous graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData

from hellm_pyg.datasets.ids import IdMap


def interaction_graph(
    ids: IdMap,
    edge_index: Tensor,
    time: Tensor,
    features: Mapping[str, Tensor],
    table: Mapping[str, list[Any]],
    name: str,
) -> HeteroData:
    r"""The un-split graph of a data set.

    Args:
        ids: The ids; their number and titles are the nodes'.
        edge_index: Users and items of shape :math:`[2, E]`, sorted by user, then
            time.
        time: Time of each edge, int64 of shape :math:`[E]`.
        features: Modality to matrix, float32 of shape :math:`[I, F]`; rows of
            items without features are NaN.
        table: Free columns about the items, each of length :math:`I`.
        name: Name of the data set.

    Returns:
        Node types ``user`` and ``item`` (``id``, ``x_<modality>``, ``title``,
        ``table``), edge type ``('user', 'interacts', 'item')`` (``edge_index``,
        ``time``), and the global ``fingerprint`` and ``name``.
    """
    data = HeteroData()
    data['user'].num_nodes = ids.num_users
    data['item'].num_nodes = ids.num_items
    data['item'].id = list(ids.items)
    for modality, x in features.items():
        data['item'][f'x_{modality}'] = x
    if ids.titles is not None:
        data['item'].title = list(ids.titles)
    if table:
        data['item'].table = dict(table)
    edges = EdgeIndex(
        edge_index, sparse_size=(ids.num_users, ids.num_items), sort_order='row'
    )
    data['user', 'interacts', 'item'].edge_index = edges.fill_cache_()
    data['user', 'interacts', 'item'].time = time
    data.fingerprint = _fingerprint(ids, edge_index, time, features)
    data.name = name
    return data


def _fingerprint(
    ids: IdMap, edge_index: Tensor, time: Tensor, features: Mapping[str, Tensor]
) -> str:
    digest = hashlib.sha256(ids.fingerprint.encode())
    named = {'edge_index': edge_index, 'time': time, **dict(sorted(features.items()))}
    for name, tensor in named.items():
        digest.update(f'{name}:{tuple(tensor.shape)}:'.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
