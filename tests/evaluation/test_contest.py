"""What a contest leaves out never changes a rank among the first."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hellm_pyg.evaluation.contest import contest
from hellm_pyg.evaluation.metrics import target_rank


@given(st.data())
def test_first_ranks_of_every_sum(data: st.DataObject) -> None:
    models = data.draw(st.integers(1, 3))
    rows, items, k = (data.draw(st.integers(1, n)) for n in (4, 12, 5))
    value = st.integers(-2, 2).map(float)  # many ties, and exact sums
    size = models * rows * items
    drawn = data.draw(st.lists(value, min_size=size, max_size=size))
    scores = list(torch.tensor(drawn).view(models, rows, items))
    item, place = st.integers(0, items - 1), st.integers(0, rows - 1)
    target = torch.tensor(data.draw(st.lists(item, min_size=rows, max_size=rows)))
    masked = data.draw(st.lists(st.tuples(place, item), max_size=8))
    row, col = torch.tensor(masked, dtype=torch.long).view(-1, 2).unbind(1)
    found = contest(scores, target, row, col, k)
    lost = torch.ones(rows, dtype=torch.bool)
    lost[found.row] = False
    for weights in ((1, 0, 0), (1, 0, 2), (1, 1, 1), (1, 3, 0)):
        pairs = list(zip(weights, range(models), strict=False))
        whole = target_rank(sum(w * scores[m] for w, m in pairs), target, row, col)
        kept = found.rank(sum(w * found.scores[m] for w, m in pairs))
        assert torch.equal(kept, whole[found.row])
        assert bool((whole[lost] > k).all())


def test_what_is_left_out() -> None:
    scores = [
        torch.tensor([[3.0, 2.0, 1.0, 5.0], [0.0, 2.0, 1.0, 3.0]]),
        torch.tensor([[0.0, 2.0, 1.0, 0.0], [0.0, 9.0, 0.0, 0.0]]),
    ]
    masked = torch.tensor([0]), torch.tensor([3])
    found = contest(scores, torch.tensor([1, 0]), *masked, 1)
    assert found.row.tolist() == [0]  # item 1 is before the other target anyhow
    assert [one.tolist() for one in found.scores] == [[2.0, 3.0], [2.0, 0.0]]
