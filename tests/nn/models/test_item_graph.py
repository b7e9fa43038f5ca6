from __future__ import annotations

import pytest
import torch

from hellm_pyg.nn.models.item_graph import neighbor_matrix
from hellm_pyg.transforms import KNNHyperedges
from tests.nn.models.batches import item_data


def test_neighbors_stand_beside_each_other() -> None:
    data = item_data(9)
    for name in 'ab':
        data['item'][f'x_{name}'] = torch.randn(9, 4)
    data = KNNHyperedges(3)(data)
    both = neighbor_matrix(data, ['a', 'b'])
    assert both.shape == (9, 4)
    assert torch.equal(both[:, :2], neighbor_matrix(data, ['a']))
    assert torch.equal(both[:, 2:], neighbor_matrix(data, ['b']))
    assert not (both == torch.arange(9)[:, None]).any()


def test_neighbors_that_are_missing_or_uneven() -> None:
    data = item_data(3)
    relation = data['item', 'member_of', 'text_hyperedge']
    with pytest.raises(ValueError, match=r'apply the transform KNNHyperedges'):
        neighbor_matrix(data, ['image'])
    relation.edge_index = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]])
    with pytest.raises(ValueError, match=r"'text_hyperedge' needs .* as many others"):
        neighbor_matrix(data, ['text'])
    relation.edge_index = torch.arange(3).repeat(2, 1)
    with pytest.raises(ValueError, match=r"'data.knn' needs to be 2 or more.*'text'"):
        neighbor_matrix(data, ['text'])


def test_either_direction_has_the_same_neighbors() -> None:
    # Two in the middle, each nobody's or two others' neighbour.
    angle = torch.tensor([-10.0, -1.0, 1.0, 10.0]).deg2rad()
    found = []
    for direction in ('row', 'col'):
        data = item_data(4)
        data['item'].x_text = torch.stack([angle.cos(), angle.sin()], dim=1)
        found.append(
            neighbor_matrix(KNNHyperedges(2, direction=direction)(data), ['text'])
        )
    assert found[0].tolist() == found[1].tolist() == [[1], [2], [1], [2]]
