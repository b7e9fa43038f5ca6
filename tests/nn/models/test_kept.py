"""When a kept value is made anew."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from hellm_pyg.nn.models.kept import Kept


class Counted:
    """Sums of sources, and how often they were made."""

    def __init__(self) -> None:
        self.kept: Kept[Tensor] = Kept()
        self.made = 0

    def total(self, *sources: Tensor | int) -> int:
        def make() -> Tensor:
            self.made += 1
            return sum(torch.as_tensor(source).sum() for source in sources) + 0

        return int(self.kept.get(sources, make))


def test_made_once_of_the_same_sources() -> None:
    counted, x, y = Counted(), torch.ones(2), torch.ones(3)
    for _ in range(2):
        assert counted.total(x, y, 1000) == 1005
    assert counted.made == 1
    assert counted.total(x, y, 10**6) == 10**6 + 5
    assert counted.total(x, y.clone(), 10**6) == 10**6 + 5
    assert counted.total(x) == 2
    assert counted.made == 4


@pytest.mark.parametrize('kind', ['tensor', 'edge index', 'in it'])
def test_made_anew_of_what_was_changed_in_place(kind: str) -> None:
    x = torch.tensor([[0, 1], [1, 2]])
    source = x if kind == 'tensor' else EdgeIndex(x)
    changed = source.as_tensor() if kind == 'in it' else source
    counted = Counted()
    assert counted.total(source) == 4
    changed[1, 1] = 9
    for _ in range(2):
        assert counted.total(source) == 11
    assert counted.made == 2


def test_tensors_of_inference_mode() -> None:
    counted = Counted()
    with torch.inference_mode():
        x = torch.ones(2)
        assert counted.total(x) == 2
        x[0] = 5
    for made in (2, 3):
        assert counted.total(x) == 6
        assert counted.made == made


def test_made_outside_of_inference_mode_and_without_gradient() -> None:
    x, kept = torch.ones(2, requires_grad=True), Kept[Tensor]()
    with torch.inference_mode():
        value = kept.get([x], lambda: 2 * x)
    assert not value.is_inference()
    assert not value.requires_grad


def test_copies_are_empty() -> None:
    counted, x = Counted(), torch.ones(2)
    counted.total(x)
    for other in (
        copy.deepcopy(counted.kept),
        pickle.loads(pickle.dumps(counted.kept)),
    ):
        counted.kept = other
        counted.total(x)
    assert counted.made == 3
