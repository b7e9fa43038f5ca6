"""The known items that new ones are like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.new_items import NewItems
from tests.builders import data_from_histories

ITEMS, NEW = 20, 6


def features(size: int, width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed))


def catalogue(**x: Tensor) -> HeteroData:
    return data_from_histories([[0, 1, 2]], ITEMS, x)


def names(count: int) -> list[Any]:
    return [f'new-{index}' for index in range(count)]


def dense(new: NewItems, data: HeteroData) -> Tensor:
    """The weights that every known item has, [N, I]."""
    scores = new.scores(data)
    assert scores.num_items == ITEMS
    return scores(torch.eye(ITEMS))[:, ITEMS:].T


def expected(known: Tensor, x: Tensor, k: int) -> Tensor:
    """Cosines of the k nearest, unnormalised, by sorting all of them."""
    cosine = (
        F.normalize(x.nan_to_num(), dim=1) @ F.normalize(known.nan_to_num(), dim=1).T
    )
    cosine[:, known.isnan().all(dim=1)] = -torch.inf
    kth = cosine.sort(dim=1, descending=True).values[:, k - 1 : k]
    weight = cosine.clamp(min=1e-6) * (cosine >= kth)
    weight[x.isnan().all(dim=1)] = 0
    return weight


@pytest.mark.parametrize('k', [1, 4, ITEMS])
def test_the_nearest_are_weighted_by_their_cosines(k: int) -> None:
    known, x = features(ITEMS), features(NEW, seed=1)
    weight = expected(known, x, k)
    found = dense(NewItems(names(NEW), {'text': x}, k=k), catalogue(text=known))
    assert torch.allclose(found, weight / weight.sum(dim=1, keepdim=True), atol=1e-6)


def test_modalities_are_summed_as_far_as_an_item_has_them() -> None:
    text, image = features(ITEMS), features(ITEMS, 3, seed=2)
    text[4], image[7] = torch.nan, torch.nan  # known items lack some, too
    new_text, new_image = features(NEW, seed=1), features(NEW, 3, seed=3)
    new_text[0], new_image[1] = torch.nan, torch.nan
    new = NewItems(names(NEW), {'text': new_text, 'image': new_image}, k=3)
    weight = expected(text, new_text, 3) + expected(image, new_image, 3)
    found = dense(new, catalogue(text=text, image=image))
    assert torch.allclose(found, weight / weight.sum(dim=1, keepdim=True), atol=1e-6)
    first = new.scores(catalogue(text=text, image=image)).neighbor[:, 0]
    best = torch.maximum(expected(text, new_text, 3), expected(image, new_image, 3))
    assert torch.equal(first, best.argmax(dim=1))


def test_a_double_has_the_score_of_what_it_doubles() -> None:
    known = features(ITEMS)
    scale = torch.tensor([[2.0], [0.5], [3.0]])
    new = NewItems(names(3), {'text': scale * known[[3, 9, 5]]}, k=1)
    scores = torch.randn(4, ITEMS)
    found = new.scores(catalogue(text=known))(scores)
    assert torch.equal(found[:, ITEMS:], scores[:, [3, 9, 5]])


def test_what_is_like_nothing_has_equal_weights() -> None:
    known = torch.eye(ITEMS, 2 * ITEMS)
    known[:, -1] = -1.0
    x = torch.zeros(1, 2 * ITEMS)
    x[0, -1] = 1.0
    found = dense(NewItems(['a'], {'text': x}, k=4), catalogue(text=known))
    assert sorted(found[0].tolist())[-5:] == pytest.approx([0.0] + [0.25] * 4)


@pytest.mark.parametrize('scale', [1e-30, 1e-17, 1e17, 1e30])
def test_the_length_of_features_does_not_matter(scale: float) -> None:
    known, x = features(ITEMS), features(NEW, seed=1)
    whole = dense(NewItems(names(NEW), {'text': x}, k=5), catalogue(text=known))
    scaled = NewItems(names(NEW), {'text': scale * x}, k=5)
    assert torch.allclose(dense(scaled, catalogue(text=known)), whole, atol=1e-6)
    other = catalogue(text=scale * known)
    assert torch.allclose(dense(scaled, other), whole, atol=1e-6)


def test_order_and_company_do_not_matter() -> None:
    known, x = features(ITEMS), features(NEW, seed=1)
    data, order = catalogue(text=known), torch.randperm(NEW)
    whole = dense(NewItems(names(NEW), {'text': x}, k=5), data)
    turned = dense(NewItems(names(NEW), {'text': x[order].double()}, k=5), data)
    assert torch.allclose(turned, whole[order], atol=1e-6)
    alone = dense(NewItems(['a'], {'text': x[2:3]}, k=5), data)
    assert torch.allclose(alone, whole[2:3], atol=1e-6)


def test_no_new_items() -> None:
    data = catalogue(text=features(ITEMS))
    for none in (NewItems([], {}), NewItems([], {'text': torch.empty(0, 5)}, [])):
        assert none.scores(data).num_new == 0


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        ({'k': 0}, r"'k' needs to be at least 1 \(got 0\)"),
        ({'k': 2.5}, r"'k' needs to be a whole number \(got 2.5\)"),
        ({'k': '2'}, r"'k' needs to be a whole number \(got '2'\)"),
        ({'k': True}, r"'k' needs to be a whole number \(got True\)"),
        (
            {'features': {'text': torch.ones(2, 5).numpy()}},
            r"'text' needs a tensor .*\[2, F\] \(got ndarray\)",
        ),
        (
            {'features': {'text': torch.tensor([[1.0, 1.0], [torch.inf, 0.0]])}},
            "'text' needs rows that are finite, .* NaN or Inf for 'b'",
        ),
        (
            {'features': {'text': torch.tensor([[1.0, torch.nan], [1.0, 0.0]])}},
            "NaN or Inf for 'a'",
        ),
        ({'titles': ['one']}, r"'titles' .* \(got 1 titles for 2 items\)"),
        ({'features': {'text': torch.ones(3, 5)}}, r"'text' .*\[2, F\] \(got \[3, 5\]"),
        ({'features': {'text': torch.ones(2)}}, r'\(got \[2\]\)'),
        ({'features': {}}, "none of 2 items, the first of them 'a'"),
        (
            {'features': {'text': torch.tensor([[1.0], [torch.nan]])}},
            "none of 1 items, the first of them 'b'",
        ),
        ({'features': {'text': torch.zeros(2, 5)}}, 'none of 2 items'),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {'ids': ['a', 'b'], 'features': {'text': torch.ones(2, 5)}}
    with pytest.raises(ValueError, match=match):
        NewItems(**given | arguments)


def test_features_of_another_kind() -> None:
    data, x = catalogue(text=features(ITEMS)), features(2, seed=1)
    with pytest.raises(ValueError, match=r"'image', they have \['text'\]"):
        NewItems(['a', 'b'], {'image': x}).scores(data)
    with pytest.raises(ValueError, match=r"'text' need the width .*, 5 \(got 4\)"):
        NewItems(['a', 'b'], {'text': x[:, :4]}).scores(data)
    bare = catalogue(text=features(ITEMS), image=torch.full((ITEMS, 3), torch.nan))
    image = torch.ones(2, 3)
    new_text = x.clone()
    new_text[1] = torch.nan
    with pytest.raises(ValueError, match=r"'features' needs .* \(got none for 'b'\)"):
        NewItems(['a', 'b'], {'text': new_text, 'image': image}).scores(bare)
    both = NewItems(['a', 'b'], {'text': x, 'image': image})
    assert torch.equal(
        dense(both, bare), dense(NewItems(['a', 'b'], {'text': x}), bare)
    )
