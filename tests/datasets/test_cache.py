import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch_geometric.transforms import AddSelfLoops, Compose, ToUndirected

from hellm_pyg.datasets.cache import content_key, whole_folder


class Silent:
    """A transform whose repr hides its argument, as PyG's default does."""

    def __init__(self, k):
        self.k = k

    def __repr__(self):
        return 'Silent()'


def double(data):
    return data


def bound(x):
    return lambda data: (data, x)


def ragged(x):
    return np.array([1, [x]], dtype=object)


def calls_itself(k):
    def apply(data):
        return apply(data.coalesce(k))

    return apply


def large(x, value):
    """The values, and other ones that print alike."""
    other = x.clone() if isinstance(x, torch.Tensor) else x.copy()
    other[1000] = value
    return x, other


def test_key_reads_contents_order_and_arguments(tmp_path):
    first, second = tmp_path / 'a', tmp_path / 'b'
    first.write_text('1')
    second.write_text('2')
    arguments = {'k': 5, 'transform': None}
    key = content_key([first, second], arguments)
    (tmp_path / 'moved').mkdir()
    moved = first.rename(tmp_path / 'moved' / 'a')
    assert content_key([moved, second], dict(arguments)) == key
    others = [
        content_key([second, moved], arguments),
        content_key([moved, second], {**arguments, 'k': 6}),
        content_key([moved, second], {**arguments, 'k': '5'}),
    ]
    second.write_text('3')
    others.append(content_key([moved, second], arguments))
    assert len({key, *others}) == 5


def test_key_tells_transforms_apart():
    def key(transform):
        return content_key([], {'pre_transform': transform})

    assert key(Compose([Silent(1), ToUndirected()])) == key(
        Compose([Silent(1), ToUndirected()])
    )
    different = [
        None,
        Silent(1),
        Silent(2),
        Silent({'a', 'b', 'c'}),
        Compose([Silent(1)]),
        Compose([Silent(2)]),
        Compose([Silent(1), AddSelfLoops()]),
        Compose([AddSelfLoops(), Silent(1)]),
        double,
        lambda data: data.coalesce(),
        lambda data: data.cpu(),
        lambda data: data.coalesce(1),
        lambda data, k=1: data,
        lambda data, k=2: data,
        lambda data, *, k=1: data,
        lambda data, *, k=2: data,
        *(bound(x) for x in (1, 2, np, ragged(1), ragged(2))),
        calls_itself(1),
        calls_itself(2),
        *map(Silent, large(torch.zeros(2000), 1)),
        *map(Silent, large(torch.zeros(2000, dtype=torch.int), 1)),
        *map(Silent, large(np.zeros(2000), 1)),
        *map(Silent, large(np.zeros(2000, 'datetime64[s]'), 1)),
        *(Silent(x.to_sparse()) for x in large(torch.ones(2000, 1), 2)),
    ]
    assert len(set(map(key, different))) == len(different)


def test_key_does_not_depend_on_the_order_of_sets():
    def key(values):
        return content_key([], {'pre_transform': Silent(values)})

    # Eight is the size of a small set's table: 0 and 8 collide.
    assert repr({0, 8}) != repr({8, 0})
    assert key({0, 8}) == key({8, 0})


def test_folder_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / 'processed' / 'key'

    def fail():
        with whole_folder(final, ['a']) as folder:
            (folder / 'a').write_text('half')
            raise OSError('disk full')

    with pytest.raises(OSError, match='full'):
        fail()
    assert list(final.parent.iterdir()) == []
    with whole_folder(final, ['a']) as folder:
        (folder / 'a').write_text('whole')
        assert not final.exists()
    assert [p.name for p in final.parent.iterdir()] == ['key']
    assert (final / 'a').read_text() == 'whole'


def test_first_of_two_processes_stays(tmp_path):
    final = tmp_path / 'key'
    with whole_folder(final, ['a']) as slow:
        (slow / 'a').write_text('slow')
        with whole_folder(final, ['a']) as fast:
            (fast / 'a').write_text('fast')
    assert (final / 'a').read_text() == 'fast'
    assert [p.name for p in tmp_path.iterdir()] == ['key']


def test_incomplete_and_stale_folders_go(tmp_path):
    final = tmp_path / 'key'
    final.mkdir()
    (final / 'b').write_text('b without a')
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    live = f'.tmp-{os.getppid()}-old'
    ages = {'.tmp-old': 90_000, f'.tmp-{dead.pid}-old': 90_000, live: 90_000}
    for name, age in (ages | {'.tmp-young': 10, f'.tmp-{dead.pid}-young': 10}).items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with whole_folder(final, ['a', 'b']) as folder:
        (folder / 'a').write_text('a')
    kept = [live, '.tmp-young', f'.tmp-{dead.pid}-young', 'key']
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
    assert [p.name for p in final.iterdir()] == ['a']


def test_a_folder_that_another_process_renames_meanwhile_does_no_harm(tmp_path):
    (tmp_path / '.tmp-1-gone').symlink_to(tmp_path / 'nowhere')
    with whole_folder(tmp_path / 'key', ['a']) as folder:
        (folder / 'a').write_text('a')
    assert (tmp_path / 'key' / 'a').read_text() == 'a'
