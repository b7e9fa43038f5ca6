"""Histories and graphs of the parts of a leave-one-out split."""

from __future__ import annotations

import copy
import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import coalesce, to_torch_csr_tensor

from hellm_pyg.indices import check_indices

Split = Literal['train', 'val', 'test', 'all']
History = Literal['train', 'train+val']

INTERACTS = ('user', 'interacts', 'item')
# Interactions after a date that are nobody's target.
LATER = ('user', 'later', 'item')


class Histories(NamedTuple):
    r"""Items of every user, oldest first, as one flat vector.

    User :math:`u` owns ``item[ptr[u]:ptr[u + 1]]``.

    Args:
        item: Items of all users, int64 of shape :math:`[T]`.
        ptr: First item of each user and the end, :math:`[U + 1]`.
    """

    item: Tensor
    ptr: Tensor

    @property
    def length(self) -> Tensor:
        """Number of items of each user, :math:`[U]`."""
        return self.ptr[1:] - self.ptr[:-1]

    @property
    def user(self) -> Tensor:
        """User of each item, :math:`[T]`."""
        user = torch.arange(self.ptr.numel() - 1, device=self.ptr.device)
        return user.repeat_interleave(self.length)

    def cpu(self) -> Histories:
        """On the CPU, where batches are made."""
        return Histories(self.item.cpu(), self.ptr.cpu())


def edge_tensor(edge_index: Tensor) -> Tensor:
    """The plain ``[2, E]`` tensor of an edge index of either kind."""
    return edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index


def interaction_edges(data: HeteroData) -> Tensor:
    """All interactions as a plain ``[2, E]`` tensor, users above items.

    Raises:
        ValueError: If an id is none of a user or an item, or their numbers are unknown.
    """
    edge_index = edge_tensor(data[INTERACTS].edge_index)
    for axis, kind in enumerate(('user', 'item')):
        size = data[kind].num_nodes
        if size is None:
            raise ValueError(
                f"'data' needs the number of its {kind}s (got none): set "
                f"data['{kind}'].num_nodes"
            )
        check_indices(
            f'data.edge_index[{axis}]',
            edge_index[axis],
            size,
            f'{kind}s',
            'number them from 0, as InteractionFiles does',
        )
    return edge_index


def chronological(user: Tensor, time: Tensor | None) -> Tensor:
    """The order of interactions by user, then time, then as they are, :math:`[E]`."""
    order = torch.arange(user.numel(), device=user.device)
    if time is not None:
        order = time.argsort(stable=True)
    return order[user[order].argsort(stable=True)]


def require_split(data: HeteroData, purpose: str) -> None:
    """Refuses data whose held-out items still lie among the edges.

    Raises:
        ValueError: If ``LeaveOneOut`` was not applied to ``data``.
    """
    if 'val_item' not in data['user'] or 'test_item' not in data['user']:
        raise ValueError(
            f"'data' needs to be split before {purpose}, or held-out items leak: apply "
            f"'LeaveOneOut' first (got user attributes {sorted(data['user'].keys())})"
        )


def _train(data: HeteroData) -> Histories:
    user, item = edge_tensor(data[INTERACTS].edge_index)
    if 'val_item' not in data['user']:  # no split has sorted them yet
        order = chronological(user, data[INTERACTS].get('time'))
        user, item = user[order], item[order]
    elif bool((user[1:] < user[:-1]).any()):
        raise ValueError(
            "'data' needs its interactions sorted by user, then time (got unsorted "
            "users): apply 'LeaveOneOut', which sorts them"
        )
    count = torch.bincount(user, minlength=int(data['user'].num_nodes))
    return Histories(item, torch.cat([count.new_zeros(1), count.cumsum(0)]))


def _append(histories: Histories, item: Tensor, present: Tensor) -> Histories:
    """One more item at the end of the histories of the users where ``present``."""
    added = present.long().cumsum(0)
    ptr = histories.ptr.clone()
    ptr[1:] += added
    out = histories.item.new_empty(int(ptr[-1]))
    shift = added - present.long()
    index = torch.arange(histories.item.numel(), device=item.device)
    out[index + shift[histories.user]] = histories.item
    out[ptr[1:][present] - 1] = item[present]
    return Histories(out, ptr)


def _insert_later(data: HeteroData, histories: Histories, split: Split) -> Histories:
    """With the interactions that a split by date kept out of training and targets."""
    (user, item), time = edge_tensor(data[LATER].edge_index), data[LATER].time
    of_user = data['user']
    times = Histories(data[INTERACTS].time, _train(data).ptr)
    for name in ('val', 'test') if split == 'all' else ('val',):
        times = _append(times, of_user[f'{name}_time'], of_user[f'{name}_item'] >= 0)
    if split == 'test':
        before = (time < of_user.test_time[user]) & (of_user.test_item[user] >= 0)
        user, item, time = user[before], item[before], time[before]
    time = torch.cat([times.item, time])
    order = time.argsort(stable=True)
    user = torch.cat([histories.user, user])[order]
    order = order[user.argsort(stable=True)]
    added = torch.bincount(user, minlength=histories.ptr.numel() - 1).cumsum(0)
    ptr = torch.cat([added.new_zeros(1), added])
    return Histories(torch.cat([histories.item, item])[order], ptr)


def history_edges(
    data: HeteroData, split: Split, history: History = 'train+val'
) -> Histories:
    r"""What is known of each user before the target of a split.

    Args:
        data: Split interactions; un-split ones are accepted for ``'all'`` alone, with
            edges in any order.
        split: ``'train'`` and ``'val'`` give the training items, ``'test'`` those of
            ``history``, ``'all'`` everything, test items included. Of data split by
            date, ``'train+val'`` means all before the test target.
        history: What a test target is predicted from: ``'train'`` or
            ``'train+val'``.

    Returns:
        Items and row pointer of all users, oldest first.

    Raises:
        ValueError: On an unknown ``split`` or ``history``, or un-split data.
    """
    if split not in ('train', 'val', 'test', 'all'):
        raise ValueError(
            f"'split' needs to be 'train', 'val', 'test' or 'all' (got {split!r})"
        )
    if history not in ('train', 'train+val'):
        raise ValueError(
            f"'history' needs to be 'train' or 'train+val' (got {history!r})"
        )
    if split != 'all':
        require_split(data, f'reading its {split!r} histories')
    histories = _train(data)
    held_out: tuple[str, ...] = ()
    if split == 'all':
        held_out = ('val_item', 'test_item')
    elif split == 'test' and history == 'train+val':
        held_out = ('val_item',)
    for name in held_out:
        if name in data['user']:
            item = data['user'][name]
            histories = _append(histories, item, item >= 0)
    if held_out and LATER in data.edge_types:
        histories = _insert_later(data, histories, split)
    return histories


def user_item_adjacency(edge_index: Tensor, num_users: int, num_items: int) -> Tensor:
    r"""The symmetrically normalised bipartite graph, users first:

    .. math::

        \mathbf{D}^{-1/2} \begin{bmatrix} \mathbf{0} & \mathbf{R} \\
        \mathbf{R}^{\top} & \mathbf{0} \end{bmatrix} \mathbf{D}^{-1/2}

    as in `LightGCN <https://arxiv.org/abs/2002.02126>`_. The result equals its
    transpose exactly. Rows of isolated nodes are empty.

    Args:
        edge_index: User and item of each interaction, :math:`[2, E]`; duplicates
            count once.
        num_users: Number of users :math:`U`.
        num_items: Number of items :math:`I`.

    Returns:
        A CSR matrix of shape :math:`[U + I, U + I]`, float32.

    Raises:
        ValueError: If an id is none of a user or an item.
    """
    user, item = edge_tensor(edge_index)
    check_indices('edge_index[0]', user, num_users, 'users')
    check_indices('edge_index[1]', item, num_items, 'items')
    item = item + num_users
    num_nodes = num_users + num_items
    both = torch.stack([torch.cat([user, item]), torch.cat([item, user])])
    both = coalesce(both, num_nodes=num_nodes)
    both, weight = gcn_norm(both, num_nodes=num_nodes, add_self_loops=False)
    with (
        warnings.catch_warnings(),
        torch.sparse.check_sparse_tensor_invariants(enable=True),
    ):
        warnings.filterwarnings('ignore', '.*Sparse CSR tensor support.*')
        return to_torch_csr_tensor(both, weight, num_nodes, is_coalesced=True)


def fold_in(data: HeteroData, split: Literal['test', 'all'] = 'test') -> HeteroData:
    r"""A copy of the data whose interactions include held-out items.

    Graph models propagate over it when test targets are predicted from
    ``history='train+val'``, or when all is known. What is folded in is nobody's
    target any more: its ``val_item`` is -1 throughout, and ``test_item``, too, with
    ``split='all'``. ``ui_adj`` is rebuilt if there is one. Attributes of the edges,
    such as their times, are dropped.

    Args:
        data: Split interactions; left untouched.
        split: ``'test'`` for what is known before the test targets, ``'all'`` for
            everything, as of :func:`history_edges`.

    Raises:
        ValueError: If the data are not split.
    """
    require_split(data, 'folding held-out items in')
    full = history_edges(data, split)
    out = copy.copy(data)
    store = out[INTERACTS]
    num_users, num_items = int(data['user'].num_nodes), int(data['item'].num_nodes)
    for name in store.edge_attrs():
        del store[name]
    store.edge_index = EdgeIndex(
        torch.stack([full.user, full.item]),
        sparse_size=(num_users, num_items),
        sort_order='row',
    ).fill_cache_()
    for name in ('val_item', 'test_item') if split == 'all' else ('val_item',):
        out['user'][name] = torch.full_like(data['user'][name], -1)
    if LATER in out.edge_types:
        del out[LATER]
    if 'ui_adj' in out:
        out.ui_adj = user_item_adjacency(store.edge_index, num_users, num_items)
    return out
