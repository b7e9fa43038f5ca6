"""Synthetic clustered interactions with features and an order to learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import HeteroData, InMemoryDataset

from hellm_pyg.datasets.graph import interaction_graph
from hellm_pyg.datasets.ids import IdMap


class FakeRecDataset(InMemoryDataset):
    r"""Random interactions that graph, feature and sequence models can learn.

    Users and items belong to clusters. The items of a cluster form a ring: a user
    walks along the ring of their own cluster to the next item not yet seen
    (probability .7), jumps within it (.2), or takes any item (.1). Features are
    the centre of the item's cluster plus noise. Users have distinct items, at
    least three and at most half of the catalogue.

    Args:
        num_users: Number of users, with ids :obj:`'user_000'`, ...
        num_items: Number of items, with ids 1, 2, ...; at least 6.
        num_clusters: Number of clusters, at most :obj:`num_items`.
        modalities: Modality to feature width; an image of 16 and a text of 12
            channels if :obj:`None`.
        avg_length: Average number of interactions of a user.
        seed: Seed of everything; equal arguments give equal data.
        missing: Share of items without features, a modality on its own.
        transform: Applied at every access.
        pre_transform: Applied once.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        num_users: int = 200,
        num_items: int = 100,
        num_clusters: int = 5,
        modalities: Mapping[str, int] | None = None,
        avg_length: int = 10,
        seed: int = 0,
        missing: float = 0.1,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
    ) -> None:
        super().__init__(None, transform, pre_transform)
        if num_users < 1:
            raise ValueError(f"'num_users' needs to be at least 1 (got {num_users})")
        if num_items < 6:
            raise ValueError(f"'num_items' needs to be at least 6 (got {num_items})")
        if not 1 <= num_clusters <= num_items:
            raise ValueError(
                f"'num_clusters' needs to lie in [1, num_items={num_items}] "
                f'(got {num_clusters})'
            )
        if avg_length < 3:
            raise ValueError(f"'avg_length' needs to be at least 3 (got {avg_length})")
        if not 0 <= missing < 1:
            raise ValueError(f"'missing' needs to lie in [0, 1) (got {missing})")
        modalities = {'image': 16, 'text': 12} if modalities is None else modalities
        rng = np.random.default_rng(seed)
        cluster = rng.permutation(np.arange(num_items) % num_clusters)
        length = 3 + rng.poisson(avg_length - 3, num_users)
        histories = _walk(rng, cluster, length.clip(max=num_items // 2))
        features = {
            name: _features(rng, cluster, width, missing)
            for name, width in modalities.items()
        }
        digits = len(str(num_users - 1))
        self.ids = IdMap(
            [f'user_{user:0{digits}}' for user in range(num_users)],
            list(range(1, num_items + 1)),
            [f'Item {i + 1} of cluster {c}' for i, c in enumerate(cluster.tolist())],
        )
        data = _graph(rng, self.ids, histories, features, cluster)
        if pre_transform is not None:
            data = pre_transform(data)
        self.data, self.slices = self.collate([data])


def _walk(
    rng: np.random.Generator, cluster: NDArray[np.int64], length: NDArray[np.int64]
) -> list[list[int]]:
    num_clusters = int(cluster.max()) + 1
    ring = [np.flatnonzero(cluster == c).tolist() for c in range(num_clusters)]
    histories = []
    for user, steps in enumerate(length.tolist()):
        own = ring[user % num_clusters]
        place = int(rng.integers(len(own)))
        seen: dict[int, None] = {own[place]: None}
        while len(seen) < steps:
            chance = rng.random()
            if chance < 0.9:
                if chance >= 0.7:
                    place = int(rng.integers(len(own)))
                places = [(place + hop) % len(own) for hop in range(1, len(own) + 1)]
                place = next((p for p in places if own[p] not in seen), -1)
                if place >= 0:
                    seen[own[place]] = None
                    continue
            seen.setdefault(int(rng.integers(cluster.size)))
        histories.append(list(seen))
    return histories


def _features(
    rng: np.random.Generator, cluster: NDArray[np.int64], width: int, missing: float
) -> Tensor:
    centre = rng.standard_normal((int(cluster.max()) + 1, width))
    x = centre[cluster] + 0.5 * rng.standard_normal((cluster.size, width))
    absent = rng.permutation(cluster.size)[: int(missing * cluster.size)]
    x[absent] = np.nan
    return torch.from_numpy(x.astype(np.float32))


def _graph(
    rng: np.random.Generator,
    ids: IdMap,
    histories: list[list[int]],
    features: dict[str, Tensor],
    cluster: NDArray[np.int64],
) -> HeteroData:
    length = np.array([len(history) for history in histories])
    user = np.repeat(np.arange(ids.num_users), length)
    item = np.concatenate([np.array(history) for history in histories])
    start = 1_700_000_000 + rng.integers(86_400, size=ids.num_users)
    pause = rng.integers(60, 3600, size=item.size).cumsum()
    first = length.cumsum() - length
    time = start[user] + pause - pause[first][user]
    return interaction_graph(
        ids,
        torch.from_numpy(np.stack([user, item])),
        torch.from_numpy(time),
        features,
        {'cluster': cluster.tolist()},
        'Fake',
    )
