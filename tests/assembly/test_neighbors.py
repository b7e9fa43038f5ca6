from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hellm_pyg.assembly.neighbors import item_neighbors


@pytest.mark.parametrize('index', ['flat', 'ivf'])
def test_the_nearest_by_cosine_without_the_item_itself(index: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 5) * torch.rand(30, 1)
    similarity = F.normalize(x, dim=1) @ F.normalize(x, dim=1).t()
    similarity.fill_diagonal_(-2)
    expected = similarity.topk(4, dim=1).indices
    found = item_neighbors('own', x, 4, index)
    assert torch.equal(found.sort(dim=1).values, expected.sort(dim=1).values)


def test_copies_of_an_item_are_its_neighbors_but_not_itself() -> None:
    x = torch.ones(6, 2)
    found = item_neighbors('own', x, 3)
    assert found.shape == (6, 3)
    assert not (found == torch.arange(6)[:, None]).any()


@pytest.mark.parametrize('missing', [0.0, float('nan')])
def test_a_missing_row_has_itself_and_is_nobodys_neighbor(missing: float) -> None:
    x = torch.randn(8, 3)
    x[5] = missing
    found = item_neighbors('own', x, 2)
    assert found[5].tolist() == [5, 5]
    assert not (found[torch.arange(8) != 5] == 5).any()


@pytest.mark.parametrize(
    ('items', 'columns'), [(0, 0), (1, 0), (2, 0), (3, 1), (5, 3), (12, 9), (20, 9)]
)
def test_few_items_have_fewer_neighbors(items: int, columns: int) -> None:
    x = torch.full((25, 3), torch.nan)
    x[:items] = torch.randn(items, 3)
    assert item_neighbors('own', x, 9).shape == (25, columns)


def test_a_broken_row_names_its_embedding() -> None:
    x = torch.randn(9, 3)
    x[4, 1] = torch.inf
    with pytest.raises(ValueError, match=r"'x_own' needs rows that are finite.* 4"):
        item_neighbors('own', x, 2)
