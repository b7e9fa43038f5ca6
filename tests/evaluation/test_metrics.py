"""Ranks by comparison against brute force and PyG's metrics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.metrics import LinkPredMRR, LinkPredNDCG, LinkPredRecall

from hellm_pyg.evaluation import (
    beyond_accuracy,
    mrr,
    ndcg,
    recall,
    summarize,
    target_rank,
    top_k,
)
from hellm_pyg.evaluation.metrics import cutoff_of


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Scores with many ties, targets, and masked items (repeats and targets too)."""
    rows, items = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    values = st.sampled_from([-math.inf, -1.5, 0.0, 0.5, 2.0, math.inf])
    scores = draw(st.lists(values, min_size=rows * items, max_size=rows * items))
    item = st.integers(0, items - 1)
    target = draw(st.lists(item, min_size=rows, max_size=rows))
    masked = draw(st.lists(st.lists(item, max_size=12), min_size=rows, max_size=rows))
    return torch.tensor(scores).view(rows, items), torch.tensor(target), masked


def flat(masked: list[list[int]]) -> tuple[Tensor, Tensor]:
    row = [r for r, items in enumerate(masked) for _ in items]
    col = [item for items in masked for item in items]
    return torch.tensor(row, dtype=torch.long), torch.tensor(col, dtype=torch.long)


@given(problems())
def test_rank_is_that_of_brute_force(
    problem: tuple[Tensor, Tensor, list[list[int]]],
) -> None:
    scores, target, masked = problem
    before = scores.clone()
    rank = target_rank(scores, target, *flat(masked))
    assert torch.equal(scores, before)
    for r in range(len(masked)):
        t = int(target[r])
        others = [
            scores[r, i] for i in range(scores.size(1)) if i != t and i not in masked[r]
        ]
        above = sum(1 for s in others if s > scores[r, t])
        tied = sum(1 for s in others if s == scores[r, t])
        assert rank[r] == 1 + above + tied / 2


@given(problems())
def test_masking_everything_leaves_the_target_first(
    problem: tuple[Tensor, Tensor, list[list[int]]],
) -> None:
    scores, target, _ = problem
    everything = [list(range(scores.size(1)))] * scores.size(0)
    assert target_rank(scores, target, *flat(everything)).eq(1).all()


def test_constant_scores_give_the_mean_rank() -> None:
    rank = target_rank(torch.zeros(2, 7), torch.tensor([0, 6]))
    assert rank.tolist() == [4.0, 4.0]


def test_nan_is_refused() -> None:
    scores = torch.zeros(3, 4)
    scores[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"'scores' .* 1 of 3 rows"):
        target_rank(scores, torch.tensor([0, 0, 0]))


def test_ranks_refuse_what_does_not_fit() -> None:
    scores, target = torch.rand(2, 3), torch.tensor([1, 0])
    one = torch.tensor([0])
    with pytest.raises(ValueError, match=r"'target' needs one item for each of 2 rows"):
        target_rank(scores, target[:1])
    with pytest.raises(ValueError, match=r"'target' needs to lie in \[0, 3\)"):
        target_rank(scores, target + 2)
    with pytest.raises(ValueError, match=r"'mask_row' and 'mask_col' .*None"):
        target_rank(scores, target, one)
    with pytest.raises(ValueError, match=r"'mask_row' and 'mask_col' need to be of"):
        target_rank(scores, target, one, torch.tensor([1, 2]))
    for wrong in (-1, 4):  # which would be an item of another row
        with pytest.raises(ValueError, match=r"'mask_col' needs to lie in \[0, 3\)"):
            target_rank(scores, target, one, torch.tensor([wrong]))


@pytest.mark.parametrize('k', [0, 4])
def test_top_k_of_more_than_there_are(k: int) -> None:
    with pytest.raises(
        ValueError, match=rf"'k' needs to lie between 1 and .*3 \(got {k}"
    ):
        top_k(torch.rand(2, 3), k)


def test_metrics_of_known_ranks() -> None:
    rank = torch.tensor([1.0, 2.0, 2.5, 3.5, 4.0])
    # A tie over the border is a hit: two and a half items lie ahead.
    assert recall(rank, 3).tolist() == [1, 1, 1, 1, 0]
    assert ndcg(rank, 3).tolist() == pytest.approx(
        [1, 1 / math.log2(3), 1 / math.log2(3.5), 1 / math.log2(4.5), 0]
    )
    assert mrr(rank, 3).tolist() == pytest.approx([1, 0.5, 0.4, 1 / 3.5, 0])
    assert list(summarize(rank, [3])) == ['R@3', 'N@3', 'MRR@3']
    assert summarize(rank, [3])['R@3'] == pytest.approx(0.8)


@pytest.mark.parametrize('k', [1, 5, 20])
def test_metrics_equal_those_of_pyg(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    scores = torch.rand(60, 40, generator=generator)
    target = torch.randint(40, (60,), generator=generator)
    mask = torch.rand(60, 40, generator=generator) < 0.2
    mask[torch.arange(60), target] = False
    rank = target_rank(scores, target, *mask.nonzero().t())
    top = scores.masked_fill(mask, -1).topk(k).indices
    label = torch.stack([torch.arange(60), target])
    for ours, theirs in (
        (recall, LinkPredRecall(k)),
        (ndcg, LinkPredNDCG(k)),
        (mrr, LinkPredMRR(k)),
    ):
        theirs.update(top, label)
        assert float(ours(rank, k).mean()) == pytest.approx(float(theirs.compute()))


@given(problems(), st.data())
def test_top_k_is_a_stable_sort(
    problem: tuple[Tensor, Tensor, list[list[int]]], data: st.DataObject
) -> None:
    scores = problem[0]
    k = data.draw(st.integers(1, scores.size(1)))
    item, score = top_k(scores, k)
    value, order = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(item, order[:, :k])
    assert torch.equal(score, value[:, :k])


def test_beyond_accuracy() -> None:
    top = torch.tensor([[0, 1], [0, 2]])
    popularity = torch.tensor([4, 2, 0, 7])
    found = beyond_accuracy(top, [1, 2], popularity)
    assert found['coverage@1'] == pytest.approx(1 / 4)
    assert found['coverage@2'] == pytest.approx(3 / 4)
    assert found['personalization@1'] == pytest.approx(0)
    assert found['personalization@2'] == pytest.approx(0.5)
    assert found['popularity@1'] == pytest.approx(4)
    assert found['popularity@2'] == pytest.approx(2.5)
    alone = beyond_accuracy(top[:1], [1], popularity)
    assert alone['personalization@1'] == 0


def test_cutoff_of() -> None:
    assert [cutoff_of(name) for name in ('R@1', 'N@10', 'MRR@200')] == [1, 10, 200]


@pytest.mark.parametrize('name', ['N10', 'P@10', 'N@', 'N@0', 'N@-1', 'N@01', 'N@²'])
def test_what_is_no_metric(name: str) -> None:
    with pytest.raises(ValueError, match="'R@K', 'N@K' or 'MRR@K'"):
        cutoff_of(name)
