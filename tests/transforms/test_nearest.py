from __future__ import annotations

import pytest
import torch

from hellm_pyg.transforms.nearest import Index, IVFMIPSKNNIndex, nearest, unit_rows


def points(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('index', ['flat', 'ivf'])
@pytest.mark.parametrize('block_size', [1, 7, 100])
def test_inner_products_are_the_largest(index: Index, block_size: int) -> None:
    x, query = points(60), points(20, seed=1)  # one cell: nothing is left out
    found, score = nearest(x, query, 5, index, block_size)
    product = (query @ x.T).sort(dim=1, descending=True)
    assert torch.equal(found, product.indices[:, :5])
    assert torch.allclose(score, product.values[:, :5], atol=1e-5)


def test_few_points_in_a_cell_are_filled_up_from_all() -> None:
    x, query = points(800), points(9, seed=1)
    found, score = nearest(x, query, 790, 'ivf')
    product = (query @ x.T).sort(dim=1, descending=True)
    assert torch.equal(found.sort(dim=1).values, product.indices[:, :790].sort().values)
    assert torch.allclose(score, product.values[:, :790], atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
def test_rows_have_length_one(dtype: torch.dtype) -> None:
    x = points(9).to(dtype)
    expected = x.double() / x.double().norm(dim=1, keepdim=True)
    assert torch.allclose(unit_rows(x).double(), expected, atol=1e-6)
    if dtype != torch.float16:
        scale = 10.0 ** torch.arange(-36, 36, 8).unsqueeze(1).to(dtype)
        assert torch.allclose(unit_rows(scale * x).double(), expected, atol=1e-6)
    small = torch.tensor([[1e-300, 0.0], [3e200, 4e200]], dtype=torch.float64)
    assert torch.allclose(unit_rows(small), torch.tensor([[1.0, 0.0], [0.6, 0.8]]))


def test_cells_grow_with_the_root_of_the_points() -> None:
    index = IVFMIPSKNNIndex(emb=points(3000))
    assert index.num_cells == 54
    assert index.index.nprobe == 8 < index.num_cells
