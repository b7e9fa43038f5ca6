"""What a run tells people and files while it goes."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from pathlib import Path

import pytest

from hellm_pyg.training.log import RunLog

STEP = {'epoch': 1, 'step': 3, 'loss': 0.5, 'lr': 0.1}
EPOCH = {'epoch': 1, 'loss': 0.4, 'lr': 0.1, 'metrics': {'N@10': 0.25}}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell(folder: Path, progress: bool = True) -> None:
    log = RunLog(folder, 0, 0, 40, progress, True)
    for step in range(3):
        time.sleep(0.06)
        log.advance('epoch 1/2', 40, {'loss': f'{0.5 - 0.1 * step:.4f}'})
    log.write(STEP, 3)
    log.write(EPOCH, 4)
    log.close()


def test_the_bar_shows_rate_and_remaining_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    tell(tmp_path)
    bar = r'epoch 1/2: .* [23]/40 \[00:00<00:\d\d, +\d+\.\d+step/s, loss=0\.[43]'
    assert re.search(bar, terminal.getvalue())


def test_there_is_no_bar_without_a_terminal_or_if_unwanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream, progress in ((io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr(sys, 'stderr', stream)
        tell(tmp_path, progress)
        assert stream.getvalue() == ''


def test_tensorboard_draws_steps_and_epochs(tmp_path: Path) -> None:
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(tmp_path)
    events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    drawn = {
        tag: [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]
        for tag in events.Tags()['scalars']
    }
    assert drawn == {
        'step/loss': [(3, 0.5)],
        'step/lr': [(3, 0.1)],
        'epoch/loss': [(4, 0.4)],
        'epoch/lr': [(4, 0.1)],
        'val/N@10': [(4, 0.25)],
    }


def test_without_tensorboard_the_lines_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    tell(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['log.jsonl']
    lines = (tmp_path / 'log.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [STEP, EPOCH]
