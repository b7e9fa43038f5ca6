import json
import os
import stat

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hellm_pyg.datasets import IdMap, UnknownIdError

ids = st.lists(st.one_of(st.integers(), st.text()), unique_by=lambda v: (type(v), v))


@given(users=ids, items=ids, data=st.data())
def test_round_trip_keeps_order_and_types(tmp_path_factory, users, items, data):
    titles = data.draw(
        st.none() | st.lists(st.text(), min_size=len(items), max_size=len(items))
    )
    path = tmp_path_factory.mktemp('ids') / 'ids.json'
    original = IdMap(users, items, titles)
    original.save(path)
    loaded = IdMap.load(path)
    assert loaded == original
    assert loaded.fingerprint == original.fingerprint
    assert [type(v) for v in loaded.users] == [type(v) for v in users]
    assert loaded.titles == titles
    assert loaded.user_index(users).tolist() == list(range(len(users)))
    assert loaded.item_id(loaded.item_index(items)) == items


def test_look_up():
    ids = IdMap(['ann', 'bob'], [10, 7, 30])
    assert (ids.num_users, ids.num_items) == (2, 3)
    assert str(ids) == 'IdMap(2, 3)'
    index = ids.item_index([30, 10])
    assert index.dtype == torch.long
    assert index.tolist() == [2, 0]
    assert ids.item_index(torch.tensor([7])).tolist() == [1]
    assert ids.item_index(np.array([7, 30])).tolist() == [1, 2]
    assert ids.user_index(np.array(['bob'])).tolist() == [1]
    assert ids.user_index([]).tolist() == []
    assert ids.user_id(1) == 'bob'
    assert ids.item_id([2, 1]) == [30, 7]
    assert ids.item_id(torch.tensor([2, 1])) == [30, 7]
    assert ids.item_id(torch.tensor(2)) == 30


def test_known_items_keep_order_and_spelling():
    ids = IdMap(['u'], [7, 'b', '9'])
    assert ids.known_items(['b', 'c', '7', None, 9, True, ['b'], 'b']) == [
        'b',
        '7',
        9,
        'b',
    ]
    assert ids.known_items([]) == []


def test_integers_and_strings_are_different_ids_with_a_fallback():
    both = IdMap([1, '1'], ['007', 7])
    assert both.user_index([1, '1']).tolist() == [0, 1]
    assert both.item_index(['007', 7, '7']).tolist() == [0, 1, 1]
    assert IdMap(['42'], [0]).user_index([42]).tolist() == [0]
    assert IdMap(['é', ' é'], [7]).user_index([' é', 'e\u0301 ']).tolist() == [1, 0]
    assert both.item_index([' 7 ', '007\t']).tolist() == [1, 0]
    with pytest.raises(UnknownIdError, match="'07'"):
        both.item_index(['07'])


@pytest.mark.parametrize('value', [True, 1.0, None, [1]])
def test_other_types_are_unknown(value):
    with pytest.raises(UnknownIdError, match='unknown user id'):
        IdMap([1, 2], [1]).user_index([value])


def test_unknown_id_names_the_nearest():
    ids = IdMap(['B0020YLEYK', 'B004756YJA'], [3, 14, 15, 92])
    with pytest.raises(UnknownIdError, match=r"'B0020YLEYX'.*: 'B0020YLEYK'$"):
        ids.user_index(['B0020YLEYX'])
    with pytest.raises(UnknownIdError, match=r'item id 13 among 4 items.*: 14, 15, 3$'):
        ids.item_index([3, 13])
    with pytest.raises(UnknownIdError, match=r"item id '90'.*: 92"):
        ids.item_index(['90'])
    assert issubclass(UnknownIdError, ValueError)


@pytest.mark.parametrize(
    ('users', 'items', 'titles', 'match'),
    [
        ([1, 2, 1], [1], None, "'users' needs unique ids .got 1 twice"),
        ([1], ['a', 'a'], None, "'items' needs unique ids .got 'a' twice"),
        ([1.5], [1], None, 'int or str .got 1.5 at position 0'),
        ([1], [True], None, 'int or str .got True'),
        ([1], [1, 2], ['one'], '1 titles for 2 items'),
        ('ab', [1], None, 'a list of one'),
    ],
)
def test_bad_ids(users, items, titles, match):
    with pytest.raises(ValueError, match=match):
        IdMap(users, items, titles)


@pytest.mark.parametrize('index', [-1, 2, [0, 2]])
def test_index_out_of_range(index):
    with pytest.raises(ValueError, match=r'\[0, 2\)'):
        IdMap([1, 2], [1]).user_id(index)


def test_one_id_needs_a_list():
    with pytest.raises(ValueError, match='list of one'):
        IdMap(['ab', 'a'], [1]).user_index('ab')


def test_fingerprint_reads_ids_order_and_types():
    prints = {
        IdMap(*pair).fingerprint
        for pair in [([1], [2]), ([2], [1]), (['1'], [2]), ([], [1, 2]), ([], [2, 1])]
    }
    assert len(prints) == 5
    assert IdMap([], [1], ['a']).fingerprint == IdMap([], [1]).fingerprint


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'ids.json'
    IdMap([1], [2]).save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        IdMap([3], [4]).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['ids.json']


def test_saved_file_has_usual_permissions(tmp_path):
    (tmp_path / 'other').write_text('')
    IdMap([1], [2]).save(tmp_path / 'ids.json')
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    'text',
    [
        None,
        '',
        '{"users": [1',
        '{"users": [1]}',
        '[1]',
        json.dumps(3),
        '{"users": null, "items": [1], "titles": null}',
        '{"users": [1], "items": [1, 1], "titles": null}',
    ],
)
def test_load_refuses_other_files(tmp_path, text):
    path = tmp_path / 'ids.json'
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r'ids.json.* is not a readable id map'):
        IdMap.load(path)


def test_further_items_come_behind():
    ids = IdMap([1, 2], ['a', 7], ['A', 'Seven'])
    more = ids.with_items(['b', 8], ['B', ''])
    assert more == IdMap([1, 2], ['a', 7, 'b', 8], ['A', 'Seven', 'B', ''])
    assert more.item_index(['8', 'a']).tolist() == [3, 0]
    assert ids.num_items == 2
    assert ids.with_items(['b']).titles == ['A', 'Seven', '']
    bare = IdMap([1], [5])
    assert bare.with_items([6]).titles is None
    assert bare.with_items([6], ['Six']).titles == ['', 'Six']
    assert bare.with_items([]) == bare
    for known in (['b', 'a'], ['7']):
        with pytest.raises(ValueError, match=rf"'items' .* \(got {known[-1]!r}, which"):
            ids.with_items(known)
    with pytest.raises(ValueError, match=r"unique ids \(got 'b' twice"):
        ids.with_items(['b', 'b'])
    with pytest.raises(ValueError, match=r'got 3 titles for 4 items'):
        ids.with_items(['b', 'c'], ['B'])
