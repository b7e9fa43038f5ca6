"""The points that are nearest to others, by FAISS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.pool.knn import KNNIndex, MIPSKNNIndex

Index = Literal['flat', 'ivf']

POINTS_PER_CELL = 39  # below it faiss warns that k-means has too few points


class IVFMIPSKNNIndex(KNNIndex):
    r"""Maximum inner product search over inverted lists that hold full vectors.

    The points are clustered into :math:`\sqrt{N}` cells; a query reads the
    ``num_cells_to_visit`` nearest. A query can get fewer than :math:`k` neighbours,
    the rest being -1.

    Args:
        num_cells_to_visit: Number of cells a query reads.
        emb: Points to add, :math:`[N, F]`.
    """

    def __init__(self, num_cells_to_visit: int = 8, emb: Tensor | None = None) -> None:
        self.num_cells_to_visit = num_cells_to_visit
        self.num_cells = 1
        super().__init__(index_factory=None, emb=emb)

    def add(self, emb: Tensor) -> None:
        """Adds points; the first call's also place the cells."""
        if self.index is None:
            most = emb.size(0) // POINTS_PER_CELL
            self.num_cells = max(1, min(int(emb.size(0) ** 0.5), most))
        super().add(emb)

    def _create_index(self, channels: int) -> Any:
        import faiss

        index: Any = faiss.index_factory(
            channels, f'IVF{self.num_cells},Flat', faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = min(self.num_cells_to_visit, self.num_cells)
        return index


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one, fp32 on the CPU, of rows that are finite and not zero."""
    x = x.detach().cpu()
    largest = x.abs().amax(dim=-1, keepdim=True)
    # Squares of what is as large or small as this are no numbers of 32 bits.
    beyond = (largest > 1e15) | (largest < 1e-15)
    return F.normalize(torch.where(beyond, x / largest, x).float(), dim=-1)


def nearest(
    points: Tensor,
    queries: Tensor,
    k: int,
    index: Index = 'flat',
    block_size: int = 4096,
) -> tuple[Tensor, Tensor]:
    r"""The :math:`k` points of the largest inner product with each query.

    Args:
        points: The points, float32 of shape :math:`[N, F]`, on the CPU.
        queries: The queries, :math:`[Q, F]`.
        k: Number of neighbours, at most :math:`N`.
        index: ``'flat'`` is exact; ``'ivf'`` reads 8 cells of an inverted file.
        block_size: Queries searched at once.

    Returns:
        Positions of the points, best first, and their inner products, each of shape
        :math:`[Q, k]`.

    Raises:
        ImportError: If faiss is not installed.
    """
    try:
        with _one_thread_on_macos():
            if index == 'flat':
                return _query(MIPSKNNIndex(points), queries, k, block_size)
            inverted = IVFMIPSKNNIndex(emb=points)
            neighbor, score = _query(inverted, queries, k, block_size)
            short = (neighbor < 0).any(dim=-1)  # too few points in the visited cells
            if bool(short.any()):
                neighbor[short], score[short] = _query(
                    MIPSKNNIndex(points), queries[short], k, block_size
                )
            return neighbor, score
    except ModuleNotFoundError as error:
        raise ImportError(
            "nearest neighbours need the package 'faiss' (pip install faiss-cpu)"
        ) from error


def _query(
    index: KNNIndex, queries: Tensor, k: int, block_size: int
) -> tuple[Tensor, Tensor]:
    found = [index.search(block, k) for block in queries.split(block_size)]
    return torch.cat([f.index for f in found]), torch.cat([f.score for f in found])


@contextmanager
def _one_thread_on_macos() -> Iterator[None]:
    """There torch and faiss each bring an OpenMP runtime, and the two clash."""
    if sys.platform != 'darwin':
        yield
        return
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
