"""What a run says while it goes: log.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

logger = logging.getLogger('hellm_pyg.training')


class RunLog:
    """Appends records to ``log.jsonl`` and, if installed, to TensorBoard.

    Args:
        run_dir: Folder of the run.
        position: Size in bytes of the part of ``log.jsonl`` that the resumed state
            knows; what a killed run wrote after that is cut off. 0 starts anew.
        step: Steps done so far.
        total: Steps of the whole run, as far as known.
        progress: Show a bar on a terminal.
        active: Whether this process writes at all.
    """

    def __init__(
        self,
        run_dir: Path,
        position: int,
        step: int,
        total: int,
        progress: bool,
        active: bool,
    ) -> None:
        self._file = self._board = None
        if active:
            self._file = open(run_dir / 'log.jsonl', 'a+b')  # noqa: SIM115
            size = self._file.seek(0, os.SEEK_END)
            self._file.truncate(min(position, size))
            self._file.seek(0, os.SEEK_END)
            self._board = _board(run_dir / 'tensorboard', step)
        self._active = active
        # None hides the bar where there is no terminal.
        self._bar = tqdm(
            total=total,
            initial=step,
            unit='step',
            disable=None if progress and active else True,
            dynamic_ncols=True,
        )

    @property
    def position(self) -> int:
        """Size of ``log.jsonl`` in bytes."""
        return 0 if self._file is None else self._file.tell()

    def advance(self, description: str, total: int, values: Mapping[str, str]) -> None:
        """Moves the bar by a step."""
        self._bar.total = total
        self._bar.set_description(description, refresh=False)
        self._bar.set_postfix(values, refresh=False)
        self._bar.update()

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """Writes one line, and its numbers as curves over ``step``."""
        if self._file is not None:
            self._file.write(json.dumps(record).encode() + b'\n')
            self._file.flush()
        if self._board is not None:
            for name, value in _numbers(record):
                self._board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Logs a line for people, above the bar."""
        if self._active:
            with self._bar.external_write_mode():
                logger.info(text)

    def close(self) -> None:
        """Closes files and the bar."""
        self._bar.close()
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()


def _numbers(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    kind = 'epoch' if 'metrics' in record else 'step'
    names = ('loss', 'lr', 'grad_norm', 'targets_per_second')
    found = [(f'{kind}/{name}', record[name]) for name in names if name in record]
    return found + [(f'val/{k}', v) for k, v in (record.get('metrics') or {}).items()]


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step if step > 0 else None)


def epoch_line(record: Mapping[str, Any], epochs: int, metric: str) -> str:
    """One line about an epoch, for people."""
    text = f'epoch {record["epoch"]}/{epochs}: loss {record["loss"]:.4f}'
    if record['metrics'] is not None:
        text += f', {metric} {record["metrics"][metric]:.4f}'
        if record['best_epoch'] == record['epoch']:
            text += ' (best so far)'
    return f'{text}, {record["seconds"] + record["eval_seconds"]:.1f} s'
