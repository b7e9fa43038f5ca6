"""Small interaction data for tests, in the library's data schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData


def data_from_histories(
    histories: Sequence[Sequence[int]],
    num_items: int,
    features: Mapping[str, Tensor] | None = None,
) -> HeteroData:
    """Un-split data of users whose items are given oldest first.

    Times increase by one within a user and start at 100 times the user.
    """
    data = HeteroData()
    data['user'].num_nodes = len(histories)
    data['item'].num_nodes = num_items
    data['item'].title = [f'Item {item}' for item in range(num_items)]
    for name, x in (features or {}).items():
        data['item'][f'x_{name}'] = x
    user = [u for u, items in enumerate(histories) for _ in items]
    item = [i for items in histories for i in items]
    time = [100 * u + t for u, items in enumerate(histories) for t in range(len(items))]
    store = data['user', 'interacts', 'item']
    store.edge_index = EdgeIndex(
        torch.tensor([user, item], dtype=torch.long),
        sparse_size=(len(histories), num_items),
        sort_order='row',
    ).fill_cache_()
    store.time = torch.tensor(time, dtype=torch.long)
    data.fingerprint = f'{len(histories)}-{num_items}-{len(item)}'
    data.name = 'Built'
    return data


def rec_data(
    num_users: int = 40,
    num_items: int = 30,
    seed: int = 0,
    modalities: Mapping[str, int] | Sequence[str] = ('text',),
    min_length: int = 1,
    max_length: int = 12,
) -> HeteroData:
    """Random un-split data: distinct items a user, Gaussian features.

    Args:
        num_users: Number of users.
        num_items: Number of items, at least ``max_length + 1``.
        seed: Seed of histories and features.
        modalities: Names (8 wide), or name to width; gives ``x_<name>``.
        min_length: Length of the shortest history; the default of 1 leaves
            some users without a held-out item.
        max_length: Length of the longest history.
    """
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(
        min_length, max_length + 1, (num_users,), generator=generator
    )
    histories = [
        torch.randperm(num_items, generator=generator)[: int(n)].tolist()
        for n in length
    ]
    if not isinstance(modalities, Mapping):
        modalities = dict.fromkeys(modalities, 8)
    features = {
        name: torch.randn(num_items, width, generator=generator)
        for name, width in modalities.items()
    }
    return data_from_histories(histories, num_items, features)
