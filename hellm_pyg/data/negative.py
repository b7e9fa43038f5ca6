"""Uniform negatives outside a user's interactions, without rejection."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import coalesce

from hellm_pyg.data.split import edge_tensor
from hellm_pyg.indices import check_indices


class NegativeSampler:
    r"""Draws items uniformly from those a user has not interacted with.

    Let :math:`h_0 < h_1 < \ldots` be the user's items. The :math:`r`-th of the other
    items is :math:`r + j`, where :math:`j` counts the :math:`h_m` with
    :math:`h_m - m \le r`. One binary search a draw finds it, so there is nothing to
    reject and draw again, whatever the share of items the user knows.

    Args:
        edge_index: User and item of each interaction, :math:`[2, E]`, in any order.
        num_users: Number of users.
        num_items: Number of items.

    Raises:
        ValueError: If a user has interacted with every item, or an id is none of a user
            or an item.
    """

    def __init__(self, edge_index: Tensor, num_users: int, num_items: int) -> None:
        self.num_users = num_users
        self.num_items = num_items
        edge_index = edge_tensor(edge_index)
        check_indices('edge_index[0]', edge_index[0], num_users, 'users')
        check_indices('edge_index[1]', edge_index[1], num_items, 'items')
        user, item = coalesce(edge_index, num_nodes=max(num_users, num_items))
        degree = torch.bincount(user, minlength=num_users)
        full = int((degree >= num_items).sum())
        if full > 0:
            raise ValueError(
                f"'edge_index' leaves no negative item to {full} of {num_users} users, "
                f'who have interacted with all items (got {num_items} items): remove '
                f'these users'
            )
        self._start = degree.cumsum(0) - degree
        self._free = num_items - degree
        rank = torch.arange(item.numel(), device=item.device) - self._start[user]
        self._key = user * num_items + (item - rank)

    def sample(
        self, user: Tensor, num_neg: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws with replacement, on the CPU: the same wherever the interactions lie.

        Args:
            user: Users, int64 of shape :math:`[N]`, on the device of the interactions;
                may repeat.
            num_neg: Number of negatives :math:`n` of each.
            generator: Source of randomness, one of the CPU.

        Returns:
            Items of shape :math:`[N, n]`.

        Raises:
            ValueError: If there is no such user.
        """
        check_indices('user', user, self.num_users, 'users')
        free = self._free[user].unsqueeze(-1)
        draw = torch.rand(
            user.numel(), num_neg, dtype=torch.float64, generator=generator
        )
        index = (draw.to(free.device) * free).long().clamp_(max=free - 1)
        key = index + (user * self.num_items).unsqueeze(-1)
        below = torch.searchsorted(self._key, key, right=True)
        return index + below - self._start[user].unsqueeze(-1)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_users} users, {self.num_items} items)'
        )
