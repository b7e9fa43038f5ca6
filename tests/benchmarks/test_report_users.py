import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import users as users_module
from benchmarks.report.cells import load
from benchmarks.report.users import COUNTS, LENGTHS, SMALLEST, Users, load_users, slices
from hellm_pyg.assembly import build_data
from hellm_pyg.config import load_config
from hellm_pyg.data.split import history_edges
from tests.benchmarks.fabricate import ranks, result, write
from tests.shop import write_shop

COMMITTED = Path(__file__).parents[2] / 'benchmarks' / 'results' / 'table1'


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=400),
    st.sampled_from([LENGTHS, COUNTS]),
)
def test_slices_are_a_partition_by_count(found: list[int], edges: tuple) -> None:
    counts = np.array(found)
    parts = slices(counts, edges)
    together = np.concatenate([part.user for part in parts])
    assert sorted(together.tolist()) == list(range(len(counts)))
    ends = [(counts[p.user].min(), counts[p.user].max()) for p in parts]
    assert all(a[1] < b[0] for a, b in pairwise(ends))
    warm = [p for p in parts if counts[p.user].min() >= edges[0]]
    if len(warm) > 1:
        assert min(len(p.user) for p in warm) >= SMALLEST * len(counts)


def test_slices_by_hand() -> None:
    counts = np.repeat([0, 2, 4, 7, 60, 300], [1, 30, 30, 30, 1, 40])
    found = [(part.label, len(part.user)) for part in slices(counts, COUNTS)]
    expected = [('0', 1), ('2 to 4', 60), ('7 to 9', 30), ('60 or more', 41)]
    assert found == expected
    labels = [part.label for part in slices(np.repeat([3, 9], 50), LENGTHS)]
    assert labels == ['3', '9 or more']


def test_users_are_counted_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, result('a', ranks(6, 1, 0)))
    (section,) = load(tmp_path)
    monkeypatch.delenv('HELLM_DATA', raising=False)
    assert load_users(section) is None
    counted = Users(np.arange(6) + 3, np.array([0, 70_000, 2, 3, 4, 5]))
    monkeypatch.setenv('HELLM_DATA', str(tmp_path))
    monkeypatch.setattr(users_module, '_count', lambda result: counted)
    first = load_users(section)
    monkeypatch.delattr(users_module, '_count')
    second = load_users(section)
    assert first is not None
    assert second is not None
    for one, other, expected in zip(first, second, counted, strict=True):
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other, expected)


def test_a_sample_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {'recipe': 'sasrec', 'overrides': [*write_shop(tmp_path), 'data.sample=0.5']}
    data, _ = build_data(load_config(own['recipe'], own['overrides']).data)
    cell = result('a', ranks(15, 1, 0), data_fingerprint=data.fingerprint, **own)
    write(tmp_path / 'results', cell)
    monkeypatch.setenv('HELLM_DATA', str(tmp_path))
    users = load_users(load(tmp_path / 'results')[0])
    assert users is not None
    length = history_edges(data, 'train').length[data['user'].sample_mask]
    assert users.history.tolist() == length.tolist()


def test_other_users_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, result('a', ranks(6, 1, 0)))
    counted = Users(np.arange(5), np.arange(5))
    monkeypatch.setenv('HELLM_DATA', str(tmp_path))
    monkeypatch.setattr(users_module, '_count', lambda result: counted)
    with pytest.raises(ValueError, match='is of 5 users'):
        load_users(load(tmp_path)[0])


def test_users_of_other_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {'recipe': 'sasrec', 'overrides': []}
    write(tmp_path, result('a', ranks(6, 1, 0), data_fingerprint='old', **own))
    monkeypatch.setenv('HELLM_DATA', str(tmp_path))
    counted = Users(np.arange(6), np.arange(6))
    monkeypatch.setattr(users_module, '_count', lambda result: counted)
    assert load_users(load(tmp_path)[0]) is not None
    write(tmp_path, result('a', ranks(6, 1, 0), data_fingerprint='new', **own))
    with pytest.raises(ValueError, match='was counted on other data'):
        load_users(load(tmp_path)[0])


def test_committed_users_are_those_of_the_files() -> None:
    if 'HELLM_DATA' not in os.environ:
        pytest.skip('HELLM_DATA is not set')
    path = Path(os.environ['HELLM_DATA']) / 'amazon_beauty' / 'sequences.txt'
    section = next(s for s in load(COMMITTED) if s.dataset == 'beauty')
    assert (COMMITTED / 'users' / 'beauty.json').is_file()
    users = load_users(section)
    assert users is not None
    rows = [line.split()[1:] for line in path.read_text().splitlines()]
    count: dict[str, int] = {}
    for row in rows:
        for item in row[:-2]:
            count[item] = count.get(item, 0) + 1
    # Users come in the order in which the files name them.
    assert users.history.tolist() == [len(row) - 2 for row in rows]
    assert users.popularity.tolist() == [count.get(row[-1], 0) for row in rows]
    assert (users.popularity == 0).sum() == 138
