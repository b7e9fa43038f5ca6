"""Provenance comes from the installation and the checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import accelerate
import pytest
import torch

from hellm_pyg.training import record


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    found = record.versions()
    assert torch.__version__.startswith(found['torch'])  # not always with '+cu124'
    assert found['accelerate'] == accelerate.__version__
    monkeypatch.setattr(record, 'PACKAGES', ('torch', 'no-such-package'))
    assert sorted(record.versions()) == ['python', 'torch']


def git(folder: Path, *arguments: str) -> str:
    name = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    command = ['git', '-C', str(folder), *name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / 'package'
    (package / 'training').mkdir(parents=True)
    init = package / '__init__.py'
    init.write_text('')
    monkeypatch.setattr(record, '__file__', str(package / 'training' / 'record.py'))
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert record.commit() is None
    git(tmp_path, 'init', '-q')
    (tmp_path / 'other').write_text('')
    git(tmp_path, 'add', 'other')
    git(tmp_path, 'commit', '-qm', 'other')
    assert record.commit() is None  # a checkout, but not of the package
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-qm', 'package')
    head = git(tmp_path, 'rev-parse', 'HEAD').strip()
    assert record.commit() == head
    result = tmp_path / record.RESULTS / 'table.json'
    result.parent.mkdir(parents=True)
    result.write_text('{}')
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-qm', 'result')
    head = git(tmp_path, 'rev-parse', 'HEAD').strip()
    result.write_text('{"R@10": 1}')
    assert record.commit() == head
    init.write_text('# changed')
    assert record.commit() == f'{head}+changes'
    monkeypatch.setenv('PATH', '')
    assert record.commit() is None


def test_peak_memory() -> None:
    before = record.peak_memory(torch.device('cpu'))['process']
    block = torch.ones(before // 4 + 2**22)  # more than all that was there
    assert record.peak_memory(torch.device('cpu'))['process'] >= 4 * block.numel()
