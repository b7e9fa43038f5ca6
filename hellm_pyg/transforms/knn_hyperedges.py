"""Nearest-neighbour hyperedges of every item modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, SupportsIndex

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.storage import NodeStorage
from torch_geometric.transforms import BaseTransform

from hellm_pyg.data.features import present_rows
from hellm_pyg.transforms.nearest import Index, nearest, unit_rows


@functional_transform('knn_hyperedges')
class KNNHyperedges(BaseTransform):
    r"""Makes one hyperedge an item and modality from its nearest neighbours
    (functional name: :obj:`knn_hyperedges`).

    With :math:`S^m` the cosine similarities of the rows of ``x_<m>``, the incidence
    of ``direction='row'`` is

    .. math::

        H^m_{ij} = 1 \; \textrm{if} \; j \in \mathrm{top}_k(S^m_{i,:}),
        \; \textrm{else} \; 0,

    so that item :math:`i` is a member of hyperedge :math:`e` iff :math:`e` is one of
    its neighbours, as in `HeLLM <https://arxiv.org/abs/2504.10541>`_'s code;
    ``'col'`` is the transpose, where an item's neighbours form its hyperedge. An item
    is always its own neighbour, at the cost of the last one if duplicates of it crowd
    it out. An item whose row is missing (all NaN or all zero) is in no hyperedge and
    nobody's neighbour, which leaves exactly :math:`k` entries a present item.

    Writes the node type ``'<m>_hyperedge'`` and the
    :class:`~torch_geometric.EdgeIndex` of
    ``('item', 'member_of', '<m>_hyperedge')``, sorted by item, caches filled. No
    :math:`I \times I` matrix is built. Nodes of another type than items are named by
    ``node_type``.

    Args:
        k: Neighbours of an item, itself included.
        modalities: Names ``m`` of the features ``x_<m>``; all of them by default.
        direction: ``'row'`` or ``'col'``.
        index: ``'flat'`` is exact; ``'ivf'`` reads 8 cells of an inverted file, for
            catalogues of 100,000 items and more.
        block_size: Queries searched at once.
        node_type: What has the features.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        k: int = 10,
        modalities: Sequence[str] | None = None,
        direction: Literal['row', 'col'] = 'row',
        index: Index = 'flat',
        block_size: int = 4096,
        node_type: str = 'item',
    ) -> None:
        if isinstance(k, bool) or not isinstance(k, SupportsIndex):
            raise ValueError(f"'k' needs to be a whole number (got {k!r})")
        if k < 1:
            raise ValueError(f"'k' needs to be at least 1 (got {k})")
        if block_size < 1:
            raise ValueError(f"'block_size' needs to be at least 1 (got {block_size})")
        if direction not in ('row', 'col'):
            raise ValueError(
                f"'direction' needs to be 'row' or 'col' (got {direction!r})"
            )
        if index not in ('flat', 'ivf'):
            raise ValueError(f"'index' needs to be 'flat' or 'ivf' (got {index!r})")
        if isinstance(modalities, str):
            raise ValueError(
                f"'modalities' needs to be a sequence of names (got {modalities!r}): "
                f'write [{modalities!r}]'
            )
        self.k = k
        self.modalities = modalities
        self.direction = direction
        self.index = index
        self.block_size = block_size
        self.node_type = node_type

    def forward(self, data: HeteroData) -> HeteroData:
        """Adds the hyperedges.

        Raises:
            ValueError: If there are no such nodes, or a modality is absent, has not a
                row for each of them, holds NaN or Inf in a row that is not missing as
                a whole, has no more than ``k`` present rows, or has hyperedges of
                other nodes.
            ImportError: If faiss is not installed.
        """
        if self.node_type not in data.node_types:
            raise ValueError(
                f"'node_type' needs to be one of the data's, {data.node_types} (got "
                f'{self.node_type!r})'
            )
        store = data[self.node_type]
        for name in self._names(store):
            edge_type = (self.node_type, 'member_of', f'{name}_hyperedge')
            sources = {s for s, _, target in data.edge_types if target == edge_type[2]}
            others = sources - {self.node_type}
            if others:
                raise ValueError(
                    f"'modalities' needs names of their own for the nodes of each type "
                    f"(got {name!r}, of which '{others.pop()}' has hyperedges): rename "
                    f"'x_{name}' of '{self.node_type}'"
                )
            present = present_rows(data, name, self.node_type).nonzero().view(-1)
            x, num_items = store[f'x_{name}'].detach(), store.num_nodes
            item, edge = self._search(name, x, present)
            if self.direction == 'col':
                item, edge = edge, item
            order = (item * num_items + edge).argsort()
            data[edge_type[2]].num_nodes = num_items
            data[edge_type].edge_index = EdgeIndex(
                torch.stack([item[order], edge[order]]),
                sparse_size=(num_items, num_items),
                sort_order='row',
            ).fill_cache_()
        return data

    def _names(self, store: NodeStorage) -> list[str]:
        known = [key[2:] for key in store.to_dict() if key.startswith('x_')]
        names = known if self.modalities is None else list(self.modalities)
        if not names or not set(names) <= set(known):
            raise ValueError(
                f"'modalities' needs names m with features 'x_<m>' of "
                f"'{self.node_type}' (got {names}, the data have {known})"
            )
        return names

    def _search(self, name: str, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        if self.k >= present.numel():
            raise ValueError(
                f"'k' needs to be below the number of nodes with modality '{name}' "
                f'(got k={self.k} and {present.numel()} such nodes)'
            )
        emb = unit_rows(x[present])
        neighbor, _ = nearest(emb, emb, self.k, self.index, self.block_size)
        own = torch.arange(present.numel()).unsqueeze(-1)
        crowded_out = (neighbor != own).all(dim=-1)
        neighbor[crowded_out, -1:] = own[crowded_out]
        present = present.cpu()
        item = present.repeat_interleave(self.k)
        return item.to(x.device), present[neighbor.view(-1)].to(x.device)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(k={self.k})'
