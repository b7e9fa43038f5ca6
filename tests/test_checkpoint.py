"""Files stay whole, and what does not fit is refused by name."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hellm_pyg import checkpoint
from hellm_pyg.checkpoint import (
    HOST,
    atomic,
    atomic_folder,
    discard_abandoned,
    load_json,
    load_metadata,
    load_tensors,
    recover_folder,
    save_json,
    save_tensors,
    tensor_hash,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_atomic_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    with atomic(tmp_path / 'a' / 'b.txt') as temporary:
        assert temporary.parent == tmp_path / 'a'
        temporary.write_text('one')
        assert names(tmp_path / 'a') == [temporary.name]
    assert names(tmp_path / 'a') == ['b.txt']
    assert (tmp_path / 'a' / 'b.txt').read_text() == 'one'


def test_atomic_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / 'b.txt'
    path.write_text('old')

    def interrupted() -> None:
        with atomic(path) as temporary:
            temporary.write_text('half of the n')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['b.txt']


@pytest.mark.skipif(sys.platform == 'win32', reason='POSIX resource limits')
def test_a_disk_without_room_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / 'x.safetensors'
    save_tensors(path, {'x': torch.zeros(3)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*x.safetensors'"):
            save_tensors(path, {'x': torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert names(tmp_path) == ['x.safetensors']


def test_atomic_folder_replaces_all_content(tmp_path: Path) -> None:
    path = tmp_path / 'state'
    for name in ('one', 'two'):
        with atomic_folder(path) as folder:
            (folder / 'sub').mkdir()
            (folder / 'sub' / name).write_text(name)
    assert names(tmp_path) == ['state']
    assert names(path / 'sub') == ['two']


def test_atomic_folder_keeps_the_old_one_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / 'state'
    with atomic_folder(path) as folder:
        (folder / 'x').write_text('old')

    def full() -> None:
        with atomic_folder(path) as folder:
            (folder / 'x').write_text('new')
            raise OSError('no room on the disk')

    with pytest.raises(OSError, match='disk'):
        full()
    assert (path / 'x').read_text() == 'old'
    assert names(tmp_path) == ['state']


@pytest.mark.parametrize('call', [1, 2])
def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path, call: int) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from hellm_pyg import checkpoint
path = {str(tmp_path / 'state')!r}
with checkpoint.atomic_folder(path) as folder:
    (folder / 'x').write_text('old')
rename, calls = os.rename, []
def killing(*names):
    calls.append(names)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*names)
os.rename = killing
with checkpoint.atomic_folder(path) as folder:
    (folder / 'x').write_text('new')
"""
    run = subprocess.run([sys.executable, '-c', code], check=False)
    assert run.returncode == -signal.SIGKILL
    assert (tmp_path / 'state').exists() == (call == 1)
    assert recover_folder(tmp_path / 'state')
    assert (tmp_path / 'state' / 'x').read_text() == 'old'
    with atomic_folder(tmp_path / 'state') as folder:
        (folder / 'x').write_text('newer')
    assert names(tmp_path) == ['state']


def left(name: str, pid: int) -> str:
    """The name of what a process has left half-written."""
    return f'.{name}.{HOST}.{pid}.0123abcd.tmp'


def test_what_a_live_process_writes_is_not_discarded(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    live, other = left('shop', os.getppid()), left('shop.v2', dead.pid)
    elsewhere = left('shop', dead.pid).replace(HOST, 'another-machine')
    for name in (live, other, elsewhere):
        (tmp_path / name).mkdir()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / left('shop', pid)).mkdir()
    with atomic_folder(tmp_path / 'shop') as folder:
        (folder / 'file').touch()
    assert names(tmp_path) == sorted([live, other, elsewhere, 'shop'])


def test_writers_of_one_file_leave_each_other_alone(tmp_path: Path) -> None:
    with atomic(tmp_path / 'x.json') as first:
        first.write_text('1')
        save_json(tmp_path / 'x.json', 2)
        assert load_json(tmp_path / 'x.json') == 2
    assert load_json(tmp_path / 'x.json') == 1
    assert names(tmp_path) == ['x.json']


def test_a_file_that_a_killed_process_left_is_discarded(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    other = left('y.json', dead.pid)
    for name in (left('x.json', dead.pid), other):
        (tmp_path / name).touch()
    with atomic(tmp_path / 'x.json', sweep=False) as temporary:
        temporary.touch()
    assert len(names(tmp_path)) == 3
    save_json(tmp_path / 'x.json', 1)
    assert names(tmp_path) == sorted([other, 'x.json'])
    discard_abandoned(tmp_path)
    assert names(tmp_path) == ['x.json']


def test_recover_folder_without_one(tmp_path: Path) -> None:
    assert not recover_folder(tmp_path / 'state')


def test_json(tmp_path: Path) -> None:
    value = {'b': [1, 2.5, None], 'a': 'Zürich'}
    save_json(tmp_path / 'x.json', value)
    assert list(load_json(tmp_path / 'x.json')) == ['b', 'a']
    assert load_json(tmp_path / 'x.json') == value
    with pytest.raises(TypeError):
        save_json(tmp_path / 'x.json', {'a': object()})
    assert json.loads((tmp_path / 'x.json').read_text()) == value
    (tmp_path / 'x.json').write_text('{"a": 1')
    (tmp_path / 'list.json').write_text('[]')
    assert load_json(tmp_path / 'list.json', list) == []
    with pytest.raises(ValueError, match=r"list\.json' is damaged.*dict \(got a list"):
        load_json(tmp_path / 'list.json', dict)
    with pytest.raises(ValueError, match=r"x\.json' is damaged"):
        load_json(tmp_path / 'x.json')
    with pytest.raises(FileNotFoundError, match=r"^there is no file '.*none\.json'"):
        load_json(tmp_path / 'none.json')


def test_entries_of_json(tmp_path: Path) -> None:
    path = tmp_path / 'x.json'
    kinds = {'a': int, 'b': {'c': str | None, 'd': list}}
    value = {'a': 1, 'b': {'c': None, 'd': [], 'more': 0}, 'more': 0}
    save_json(path, value)
    assert load_json(path, kinds) == value
    for other, message in (
        ({}, "lacks 'a', 'b';"),
        ({**value, 'b': {}}, r"lacks 'b\.c', 'b\.d'"),
        ({**value, 'a': '1'}, r"'a' needs to be of type int \(got '1'\)"),
        ({**value, 'b': [2]}, r"'b' needs to be of type dict \(got \[2\]\)"),
        ({**value, 'b': {'c': 3, 'd': []}}, r"'b\.c' .* str \| None \(got 3\)"),
        ([], r'dict \(got a list'),
    ):
        save_json(path, other)
        with pytest.raises(ValueError, match=rf"x\.json' is damaged.*{message}"):
            load_json(path, kinds)


DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(
        st.text('abc.', min_size=1, max_size=6),
        st.lists(st.integers(0, 4), max_size=3),
        max_size=4,
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_tensors_round_trip(
    tmp_path: Path, shapes: dict[str, list[int]], dtype: torch.dtype
) -> None:
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    save_tensors(tmp_path / 'x', tensors, {'note': 'hi'})
    loaded = load_tensors(tmp_path / 'x', tensors)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor)
    assert load_metadata(tmp_path / 'x') == {'note': 'hi'}
    assert tensor_hash(loaded) == tensor_hash(tensors)


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    for metadata in (None, {}, {'note': 'hi'}):
        save_tensors(tmp_path / 'x', {}, metadata)
        assert load_tensors(tmp_path / 'x') == {}
        assert load_metadata(tmp_path / 'x') == (metadata or {})


def test_shared_and_transposed_tensors(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / 'x', {'x': x, 'same': x, 'view': x[1], 't': x.t()})
    loaded = load_tensors(tmp_path / 'x')
    assert torch.equal(loaded['same'], x)
    assert torch.equal(loaded['view'], x[1])
    assert torch.equal(loaded['t'], x.t())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'x.safetensors'
    save_tensors(path, {'a': torch.zeros(2), 'b': torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"lacks 'c'; it has also 'b'"):
        load_tensors(path, {'a': (2,), 'c': (1,)})
    with pytest.raises(ValueError, match=r"'b' .* \[3, 2\] \(got \[2, 3\]\)"):
        load_tensors(path, {'a': (2,), 'b': torch.zeros(3, 2)})
    many = {f'w{i}': (1,) for i in range(8)}
    with pytest.raises(ValueError, match="'w4' and 3 more"):
        load_tensors(path, many)
    with pytest.raises(FileNotFoundError, match='y'):
        load_tensors(tmp_path / 'y')


@pytest.mark.parametrize('keep', [0, 4, 20, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / 'x.safetensors'
    save_tensors(path, {'a': torch.randn(50)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.safetensors' is damaged"):
        load_tensors(path)


def test_hash_sees_names_types_shapes_and_values() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    base = tensor_hash({'x': x, 'y': torch.ones(1)})
    assert base == tensor_hash({'y': torch.ones(1), 'x': x.t().contiguous().t()})
    others = [
        {'z': x, 'y': torch.ones(1)},
        {'x': x.double(), 'y': torch.ones(1)},
        {'x': x.reshape(3, 2), 'y': torch.ones(1)},
        {'x': x + 1e-6, 'y': torch.ones(1)},
        {'x': x},
    ]
    hashes = {tensor_hash(other) for other in others}
    assert len(hashes) == len(others)
    assert base not in hashes


def test_sync_reaches_files_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, 'fsync', lambda fd: (synced.append(fd), fsync(fd)))
    with checkpoint.atomic_folder(tmp_path / 'state') as folder:
        (folder / 'x').write_text('x')
    assert len(synced) == 3  # the file, the folder and its parent
