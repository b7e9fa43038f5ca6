"""Iterated k-core of a bipartite graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def core_mask(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    k: int,
    k_user: int | None = None,
) -> NDArray[np.bool_]:
    r"""The edges of the k-core: the largest part in which all degrees reach k.

    Users and items with too few edges are taken out until none is
    left; the result does not depend on the order.

    Args:
        user: User of each edge, from 0, of shape :math:`[E]`.
        item: Item of each edge, from 0, of shape :math:`[E]`.
        k: Smallest degree; 0 and 1 keep everything.
        k_user: Smallest degree of users; :obj:`k` if :obj:`None`.

    Returns:
        Which edges stay, of shape :math:`[E]`.
    """
    k_user = k if k_user is None else k_user
    kept = np.arange(user.size)
    while kept.size:
        enough = (np.bincount(user[kept])[user[kept]] >= k_user) & (
            np.bincount(item[kept])[item[kept]] >= k
        )
        if enough.all():
            break
        kept = kept[enough]
    mask = np.zeros(user.size, dtype=bool)
    mask[kept] = True
    return mask
