from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hellm_pyg.preparation.folder import new_folder

from .shop import write_orders


def test_new_and_empty_and_prepared_folders_are_taken(tmp_path: Path) -> None:
    out = tmp_path / 'a' / 'b'
    for number in range(3):
        if number == 1:
            (out / 'old').unlink()
        if number == 2:
            (out / 'old').rename(out / 'dataset.yaml')
        with new_folder(out) as folder:
            (folder / 'old').write_text(str(number))
        assert (out / 'old').read_text() == str(number)
        assert os.listdir(out.parent) == ['b']


@pytest.mark.parametrize('names', [['notes.txt'], ['dataset.yaml', 'runs'], ['cache']])
def test_what_others_wrote_is_not_replaced(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with (
        pytest.raises(ValueError, match=f"holds '{names[-1]}'.*/prepared'"),
        new_folder(tmp_path),
    ):
        raise AssertionError('is not reached')
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_files_and_the_present_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='got the file'), new_folder(tmp_path / 'file'):
        pass
    (tmp_path / 'in').mkdir()
    monkeypatch.chdir(tmp_path / 'in')
    for out in ('.', tmp_path):
        with pytest.raises(ValueError, match='where you are'), new_folder(out):
            pass


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / 'out'
    with new_folder(out) as folder:
        (folder / 'dataset.yaml').write_text('first')
    with (  # noqa: PT012
        pytest.raises(OSError, match='full'),
        new_folder(out) as folder,
    ):
        (folder / 'dataset.yaml').write_text('second')
        raise OSError('the disk is full')
    assert (out / 'dataset.yaml').read_text() == 'first'
    assert os.listdir(tmp_path) == ['out']


def test_a_killed_process_leaves_nothing_to_read(tmp_path: Path) -> None:
    orders, _ = write_orders(tmp_path)
    code = (
        'import os, signal, sys\n'
        'from hellm_pyg.preparation import prepare_table, table\n'
        'def killed(*a):\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
        'table.complete = killed\n'
        'prepare_table(*sys.argv[1:])\n'
    )
    out = tmp_path / 'out'
    run = subprocess.run([sys.executable, '-c', code, str(out), str(orders)])
    assert run.returncode == -signal.SIGKILL
    assert not out.exists()
    left = [path for path in tmp_path.iterdir() if path.name.startswith('.out')]
    assert len(left) == 1
    with new_folder(out) as folder:
        (folder / 'dataset.yaml').touch()
    assert not left[0].exists()
