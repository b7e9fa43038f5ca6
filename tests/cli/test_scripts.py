from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from .running import error, hellm


def test_benchmark_runs_from_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def call(command: list[str], env: dict[str, str]) -> int:
        calls.append((command[1:], env['PYTHONPATH'].split(os.pathsep)[0]))
        return 3

    monkeypatch.setattr('hellm_pyg.cli.scripts.subprocess.call', call)
    (tmp_path / 'benchmarks').mkdir()
    (tmp_path / 'benchmarks' / 'run.py').touch()
    monkeypatch.chdir(tmp_path)
    hellm('benchmark', 'table.yaml', '--resume', code=3)
    wanted = ['-m', 'benchmarks.run', 'table.yaml', '--resume']
    assert calls == [(wanted, str(tmp_path))]


def test_benchmark_takes_a_table_of_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('mine.yaml').write_text(
        '{datasets: [toys], seeds: [3], protocols: [], cells: {a: {recipe: sasrec}}}'
    )
    hellm('benchmark', 'mine.yaml', '--list')
    assert capfd.readouterr().out.startswith('toys-a-3: dataset=toys')
    hellm('benchmark', 'none.yaml', '--list', code=2)
    assert capfd.readouterr().err.startswith("Error: 'none.yaml' cannot be read")


def test_benchmark_without_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / 'a' / 'cli' / 'scripts.py'
    monkeypatch.setattr('hellm_pyg.cli.scripts.__file__', str(file))
    assert 'checkout of the repository' in error('benchmark')


def test_demo_is_handed_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    module = types.ModuleType('hellm_pyg.demo')
    module.main = seen.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, 'hellm_pyg.demo', module)
    hellm('demo', 'x')
    assert seen == [['x']]
    assert 'No such option' in hellm('demo', '--fast', code=2).stderr
    assert len(seen) == 1
    assert "'FOLDER'" in error('demo', __file__)
    assert len(seen) == 1
