from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.datasets.ids import Id, IdMap, UnknownIdError
from hellm_pyg.new_items import NewItems
from hellm_pyg.nn.models import LightGCN, SASRec
from hellm_pyg.recommendation import (
    Recommendation,
    export_top_n,
    recommend,
    write_rows,
)
from hellm_pyg.transforms import LeaveOneOut, UserItemGraph
from tests.builders import data_from_histories, rec_data

K = 3


def catalogue(data: HeteroData, titles: bool = True) -> IdMap:
    items = [f'asin-{i}' for i in range(data['item'].num_nodes)]
    users: list[Id] = [1000 + 7 * u for u in range(data['user'].num_nodes)]
    return IdMap(users, items, list(data['item'].title) if titles else None)


@pytest.fixture
def data() -> HeteroData:
    return Compose([LeaveOneOut(), UserItemGraph()])(rec_data(num_users=20))


@pytest.fixture
def ids(data: HeteroData) -> IdMap:
    return catalogue(data)


class LastItem(torch.nn.Module):
    """Likes the items that follow the last one, in a circle."""

    def encode(self, data: HeteroData) -> int:
        self.interactions = data['user', 'interacts', 'item'].edge_index.size(1)
        return int(data['item'].num_nodes)

    def score(self, encoded: int, batch: SequenceBatch) -> Tensor:
        last = batch.item[batch.last].unsqueeze(1)
        return -((torch.arange(encoded) - last) % encoded).float()


def test_known_user_goes_on_from_everything_known() -> None:
    raw = data_from_histories([[0, 1, 2, 3], [9, 7, 8], [5, 6]], num_items=10)
    data = LeaveOneOut()(raw)
    model, ids = LastItem(), catalogue(data)
    rows = recommend(model, data, ids, users=[1007, 1000, 1014], k=K)
    assert [(row.user, row.rank, row.item) for row in rows] == [
        (1007, 1, 'asin-0'),  # after the test item 8; 9 is seen
        (1007, 2, 'asin-1'),
        (1007, 3, 'asin-2'),
        (1000, 1, 'asin-4'),
        (1000, 2, 'asin-5'),
        (1000, 3, 'asin-6'),
        (1014, 1, 'asin-7'),
        (1014, 2, 'asin-8'),
        (1014, 3, 'asin-9'),
    ]
    assert rows[0].title == 'Item 0'
    assert rows[0].score == -2.0
    assert model.interactions == 9


def test_seen_items_may_be_ranked(data: HeteroData) -> None:
    model, ids = LastItem(), catalogue(data, titles=False)
    row = recommend(model, data, ids, users=[1000], k=1, exclude_seen=False)[0]
    assert row.score == 0
    assert row.title is None


def test_new_user_by_history(data: HeteroData, ids: IdMap) -> None:
    histories = [['asin-3', 'asin-28'], ['asin-4', 'asin-29', 'asin-0']]
    rows = recommend(LastItem(), data, ids, histories=histories, k=K)
    assert [row.item for row in rows] == [
        'asin-29', 'asin-0', 'asin-1', 'asin-1', 'asin-2', 'asin-3'
    ]  # fmt: skip
    assert {row.user for row in rows} == {None}
    both = recommend(LastItem(), data, ids, [1007], histories, k=K)
    assert both[K:] == rows
    assert [row.history for row in both] == [None] * K + [1] * K + [2] * K
    assert {row.user for row in both[:K]} == {1007}


def test_no_histories_are_not_everybody(data: HeteroData, ids: IdMap) -> None:
    assert recommend(LastItem(), data, ids, histories=[], k=K) == []


def test_an_empty_title_is_none(data: HeteroData) -> None:
    ids = catalogue(data)
    ids.titles[0] = ''
    rows = recommend(LastItem(), data, ids, histories=[['asin-28', 'asin-29']], k=2)
    assert [(row.item, row.title) for row in rows] == [
        ('asin-0', None),
        ('asin-1', 'Item 1'),
    ]


@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_new_users_are_numbered_over_all_batches(
    data: HeteroData, ids: IdMap, batch_size: int
) -> None:
    histories = [[f'asin-{i}'] for i in range(5)]
    rows = recommend(
        LastItem(), data, ids, ids.users[:3], histories, k=1, batch_size=batch_size
    )
    assert [row.history for row in rows] == [None] * 3 + [1, 2, 3, 4, 5]
    assert [row.item for row in rows[3:]] == [f'asin-{i + 1}' for i in range(5)]


def test_long_history_is_cut_to_its_end(data: HeteroData, ids: IdMap) -> None:
    torch.manual_seed(0)
    model = SASRec(30, embedding_dim=8, max_len=4)
    history = [f'asin-{i}' for i in range(9)]
    long, short = (
        recommend(model, data, ids, histories=[h], k=5) for h in (history, history[-4:])
    )
    scores = {row.item: row.score for row in short}
    assert long[0].item not in history
    shared = [row for row in long if row.item in scores]
    assert shared
    for row in shared:
        assert row.score == pytest.approx(scores[row.item], abs=1e-6)


def test_all_users_by_default(data: HeteroData, ids: IdMap) -> None:
    rows = recommend(LastItem(), data, ids, k=1)
    assert [row.user for row in rows] == ids.users


@pytest.mark.parametrize('model', ['lightgcn', 'sasrec'])
def test_rows_do_not_depend_on_company(
    data: HeteroData, ids: IdMap, model: str
) -> None:
    torch.manual_seed(0)
    recommender = LightGCN(20, 30, 8) if model == 'lightgcn' else SASRec(30, 8)
    together = recommend(recommender, data, ids, k=K)
    for user in ids.users[:4]:
        alone = recommend(recommender, data, ids, [user], k=K, batch_size=1)
        row = ids.users.index(user) * K
        assert [a.item for a in alone] == [t.item for t in together[row : row + K]]


def test_unknown_ids_are_named(data: HeteroData, ids: IdMap) -> None:
    with pytest.raises(UnknownIdError, match=r'user id 1001.*1000'):
        recommend(LastItem(), data, ids, users=[1001])
    with pytest.raises(UnknownIdError, match="item id 'asin-99'"):
        recommend(LastItem(), data, ids, histories=[['asin-1', 'asin-99']])
    with pytest.raises(ValueError, match=r"'histories'.*position \[1\]"):
        recommend(LastItem(), data, ids, histories=[['asin-1'], []])


class Diverged(LastItem):
    """Has lost all its scores."""

    def score(self, encoded: int, batch: SequenceBatch) -> Tensor:
        return torch.full((batch.batch_size, encoded), torch.nan)


def test_what_cannot_be_ranked(data: HeteroData, ids: IdMap, tmp_path: Path) -> None:
    path = tmp_path / 'top.csv'
    path.write_text('kept')
    for model, k, message in (
        (LastItem(), 0, r"'k' needs .* 30 items \(got 0\)"),
        (LastItem(), '3', r"'k' needs .* whole number \(got '3'\)"),
        (Diverged(), 3, 'NaN or infinite scores'),
    ):
        with pytest.raises(ValueError, match=message):
            recommend(model, data, ids, k=k)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            export_top_n(model, data, ids, path, k=k, batch_size=4)  # type: ignore[arg-type]
    assert path.read_text() == 'kept'
    assert list(tmp_path.iterdir()) == [path]


def test_few_unseen_items_make_a_short_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = data_from_histories([[0, 1, 2, 3], [9, 7, 8], [5, 6]], num_items=10)
    data = LeaveOneOut()(raw)
    ids = catalogue(data)
    everything = ids.items
    histories = [everything[:9], everything]
    rows = recommend(LastItem(), data, ids, [1014, 1000, 1007], histories, k=7)
    found = [(row.user, row.rank, row.item) for row in rows]
    assert found[7:13] == [
        (1000, rank, f'asin-{3 + rank}') for rank in range(1, 7)
    ]  # six of ten items are new to this user
    assert [user for user, rank, _ in found if rank == 1] == [1014, 1000, 1007, None]
    assert found[20:] == [(None, 1, 'asin-9')]  # and the last one has seen all
    assert [r.getMessage() for r in caplog.records] == [
        '3 of 5 users have fewer than 7 unseen items: their lists are shorter'
    ]
    caplog.clear()
    path = tmp_path / 'top.jsonl'
    count = export_top_n(LastItem(), data, ids, path, k=7, batch_size=1)
    expected = recommend(LastItem(), data, ids, k=7)
    assert count == 20
    assert read(path) == [known(row) for row in expected]
    said = '1 of 3 users have fewer than 7 unseen items: their lists are shorter'
    assert [r.getMessage() for r in caplog.records] == [said, said]
    caplog.clear()
    assert len(recommend(LastItem(), data, ids, k=6)) == 18
    assert len(recommend(LastItem(), data, ids, k=10, exclude_seen=False)) == 30
    assert not caplog.records
    assert recommend(LastItem(), data, ids, k=10**9) == recommend(
        LastItem(), data, ids, k=8
    )
    assert len(recommend(LastItem(), data, ids, k=11, exclude_seen=False)) == 30
    assert 'have fewer than 11 items:' in caplog.records[-1].getMessage()
    assert len(recommend(LastItem(), data, ids, k=3, candidates=ids.items[:2])) < 9
    assert 'fewer than 3 unseen candidates:' in caplog.records[-1].getMessage()


def test_candidates(data: HeteroData, ids: IdMap, tmp_path: Path) -> None:
    some, model = ids.items[3:20:2], LastItem()
    histories = [ids.items[:4]]
    rows = recommend(model, data, ids, ids.users, histories, k=40, candidates=some)
    every = recommend(model, data, ids, ids.users, histories, k=40)
    assert [(row.user, row.item, row.score) for row in rows] == [
        (row.user, row.item, row.score) for row in every if row.item in some
    ]
    path = tmp_path / 'top.jsonl'
    export_top_n(model, data, ids, path, k=3, candidates=some)
    expected = recommend(model, data, ids, k=3, candidates=some)
    assert read(path) == [known(row) for row in expected]
    with pytest.raises(UnknownIdError, match='ghost'):
        recommend(model, data, ids, k=3, candidates=[some[0], 'ghost'])


def new_items(data: HeteroData, doubles: list[int]) -> NewItems:
    """New items that are like known ones in all but the id."""
    names: list[Id] = [f'new-{index}' for index in doubles]
    x = data['item'].x_text[doubles]
    return NewItems(names, {'text': x}, [f'New {i}' for i in doubles], k=1)


def test_new_items_stand_behind_what_they_are_like(
    data: HeteroData, ids: IdMap, tmp_path: Path
) -> None:
    new, model = new_items(data, [2, 29, 0]), LastItem()
    histories = [['asin-27'], ['asin-3', 'new-29'], ['asin-28']]
    rows = recommend(model, data, ids, histories=histories, k=3, new_items=new)
    assert [(row.history, row.item, row.title) for row in rows] == [
        (1, 'asin-28', 'Item 28'),
        (1, 'asin-29', 'Item 29'),
        (1, 'new-29', 'New 29'),  # of equal scores the known one is first
        (2, 'asin-29', 'Item 29'),  # the new one is in the history
        (2, 'asin-0', 'Item 0'),
        (2, 'new-0', 'New 0'),
        (3, 'asin-29', 'Item 29'),
        (3, 'new-29', 'New 29'),
        (3, 'asin-0', 'Item 0'),
    ]
    assert rows[1].score == rows[2].score
    some = recommend(
        model, data, ids, users=ids.users, k=9, new_items=new,
        candidates=['new-0', 'asin-5', 'new-2'],
    )  # fmt: skip
    assert {row.item for row in some} == {'new-0', 'asin-5', 'new-2'}
    for ending in ('jsonl', 'parquet', 'csv'):
        path = tmp_path / f'top.{ending}'
        count = export_top_n(model, data, ids, path, k=12, new_items=new)
        assert count == len(read(path)) == 20 * 12
        every = ids.with_items(new.ids, new.titles)
        write_rows(rows, path, every)
        assert [row['item'] for row in read(path)] == [row.item for row in rows]
    assert ids.num_items == 30


def test_new_items_that_are_known(data: HeteroData, ids: IdMap) -> None:
    known = NewItems(['asin-3'], {'text': data['item'].x_text[:1]})
    with pytest.raises(ValueError, match=r"not known yet \(got 'asin-3', which is"):
        recommend(LastItem(), data, ids, k=3, new_items=known)
    with pytest.raises(UnknownIdError, match="item id 'new-1'"):
        recommend(LastItem(), data, ids, k=3, candidates=['new-1'])


def known(row: Recommendation) -> dict[str, Any]:
    values = row._asdict()
    assert values.pop('history') is None
    return values


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == '.jsonl':
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == '.csv':
        with path.open(newline='') as file:
            return list(csv.DictReader(file))
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


@pytest.mark.parametrize('ending', ['parquet', 'csv', 'jsonl'])
def test_export_streams_what_recommend_returns(
    data: HeteroData, ids: IdMap, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / 'deep' / f'top.{ending}'
    count = export_top_n(LastItem(), data, ids, path, k=K, batch_size=7)
    expected = recommend(LastItem(), data, ids, k=K)
    rows = read(path)
    assert count == len(rows) == len(expected) == 20 * K
    kinds = (int, int, str, str, float)
    fields = Recommendation._fields[:-1]
    for row, line in zip(rows, expected, strict=True):
        values = [row[f] for f in fields]
        if ending == 'csv':
            values = [kind(v) for kind, v in zip(kinds, values, strict=True)]
        assert list(row) == list(fields)
        assert (*values, None) == line
    assert list(path.parent.iterdir()) == [path]


def test_parquet_holds_no_more_than_a_batch(
    data: HeteroData, ids: IdMap, tmp_path: Path
) -> None:
    from pyarrow import parquet

    path = tmp_path / 'top.parquet'
    export_top_n(LastItem(), data, ids, path, k=2, batch_size=8)
    file = parquet.ParquetFile(path)
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [16, 16, 8]


def test_parquet_has_ids_beyond_64_bits_as_texts(
    data: HeteroData, tmp_path: Path
) -> None:
    ids = IdMap(list(range(20)), [2**63 + item for item in range(30)])
    path = tmp_path / 'top.parquet'
    export_top_n(LastItem(), data, ids, path, k=2)
    expected = recommend(LastItem(), data, ids, k=2)
    rows = read(path)
    assert [row['user'] for row in rows] == [row.user for row in expected]
    assert [row['item'] for row in rows] == [str(row.item) for row in expected]


@pytest.mark.parametrize('ending', ['parquet', 'csv', 'jsonl'])
def test_rows_of_new_users_can_be_written(
    data: HeteroData, tmp_path: Path, ending: str
) -> None:
    ids = IdMap(list(range(20)), ['a,"b"\n', *range(1, 30)])
    rows = recommend(LastItem(), data, ids, histories=[[29]], k=2)
    path = tmp_path / f'new.{ending}'
    write_rows(rows, path, ids)
    first, second = read(path)
    assert first['item'] == 'a,"b"\n'
    assert str(second['item']) == '1'
    assert first['user'] in (None, '')
    everything: list[list[Id]] = [ids.items, [1], [2]]
    rows = recommend(LastItem(), data, ids, [3], everything, k=1)
    write_rows(rows, path, ids)
    assert [str(row['history'] or '-') for row in read(path)] == ['-', '2', '3']
    write_rows(recommend(LastItem(), data, ids, [], [ids.items]), path, ids)
    assert read(path) == []


def test_unknown_format(data: HeteroData, ids: IdMap, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'\.parquet, \.csv, \.jsonl \(got .*xlsx'):
        export_top_n(LastItem(), data, ids, tmp_path / 'top.xlsx')


def test_a_folder_is_no_file(data: HeteroData, ids: IdMap, tmp_path: Path) -> None:
    (tmp_path / 'top.csv').mkdir()
    match = r"'path' needs to be a file \(got the folder '.*top\.csv'\)"
    with pytest.raises(ValueError, match=match):
        export_top_n(Diverged(), data, ids, tmp_path / 'top.csv')
    with pytest.raises(ValueError, match=match):
        write_rows([], tmp_path / 'top.csv', ids)
