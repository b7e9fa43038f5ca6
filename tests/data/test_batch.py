"""What a batch says of its rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hellm_pyg.data.batch import PairBatch, SequenceBatch

rows_of_items = st.lists(
    st.lists(st.integers(0, 20), max_size=6), min_size=1, max_size=6
)


def batch_of(rows: list[list[int]], every: bool) -> SequenceBatch:
    item = torch.tensor([i for row in rows for i in row], dtype=torch.long)
    batch = torch.tensor([r for r, row in enumerate(rows) for _ in row]).long()
    user = torch.arange(len(rows))
    return SequenceBatch(user, item, batch, item if every else user)


@given(rows=rows_of_items.filter(all))
@settings(deadline=None)
def test_a_position_has_seen_its_row_up_to_itself(rows: list[list[int]]) -> None:
    target, item = batch_of(rows, every=True).seen
    histories = [row[: t + 1] for row in rows for t in range(len(row))]
    expected = [(n, i) for n, history in enumerate(histories) for i in history]
    assert list(zip(target.tolist(), item.tolist(), strict=True)) == expected


@given(rows=rows_of_items.filter(all), data=st.data())
@settings(deadline=None)
def test_targets_that_are_left_count_anew(
    rows: list[list[int]], data: st.DataObject
) -> None:
    batch = batch_of(rows, every=True)
    flags = st.lists(st.booleans(), min_size=batch.num_targets)
    kept = torch.tensor(data.draw(flags)[: batch.num_targets])
    target, item = batch.seen_by(kept)
    histories = [row[: t + 1] for row in rows for t in range(len(row))]
    left = [h for h, flag in zip(histories, kept.tolist(), strict=True) if flag]
    expected = [(n, i) for n, history in enumerate(left) for i in history]
    assert list(zip(target.tolist(), item.tolist(), strict=True)) == expected


@given(rows=rows_of_items)
@settings(deadline=None)
def test_an_empty_row_has_no_last_item(rows: list[list[int]]) -> None:
    batch = batch_of(rows, every=False)
    found = [batch.item[i].item() if i >= 0 else None for i in batch.last.tolist()]
    assert found == [row[-1] if row else None for row in rows]


@given(rows=rows_of_items)
@settings(deadline=None)
def test_a_row_has_seen_all_its_items(rows: list[list[int]]) -> None:
    target, item = batch_of(rows, every=False).seen
    expected = [(r, i) for r, row in enumerate(rows) for i in row]
    assert list(zip(target.tolist(), item.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ('item', 'row', 'match'),
    [
        ([1, 2], [0], r"'batch.item' and 'batch.batch' need .*got \[2\] and \[1\]"),
        ([-1, 2], [0, 1], r"'batch.item' needs to lie in \[0, 3\).* from -1 to 2"),
        ([1, 3], [0, 1], r"'batch.item' needs to lie in \[0, 3\)"),
        ([1, 2], [1, 0], r"'batch.batch' needs to ascend"),
        ([1, 2], [0, 2], r"'batch.batch' needs to lie in \[0, 2\), the number of rows"),
    ],
)
def test_histories_that_are_none(item: list[int], row: list[int], match: str) -> None:
    batch = SequenceBatch(torch.arange(2), torch.tensor(item), torch.tensor(row))
    with pytest.raises(ValueError, match=match):
        batch.check(3)


def test_triples_of_other_shapes() -> None:
    two, three = torch.zeros(2).long(), torch.zeros(3).long()
    PairBatch(two, two, torch.zeros(2, 5).long()).check(1, 1)
    for pos, neg in ((three, two), (two[:1], two), (two, three), (two, two.view(1, 2))):
        with pytest.raises(ValueError, match=r"'batch' needs 'user' and 'pos_item' of"):
            PairBatch(two, pos, neg).check(1, 1)
