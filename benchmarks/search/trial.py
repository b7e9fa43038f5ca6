"""One trial: a training in its own process, followed by its log and cut short.

    python -m benchmarks.search.trial RUN_FOLDER RECIPE [A.B=C]...

It measures on validation alone: nothing here evaluates on the test items.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks import child

METRIC = 'N@10'
POLL_SECONDS = 0.5


class Outcome(NamedTuple):
    """What a trial came to.

    Args:
        state: How it ended.
        curve: Epoch, seconds (since the start of the training) and metric of each
            validation.
        error: Why it failed.
    """

    state: Literal['complete', 'time is up', 'pruned', 'failed']
    curve: list[dict[str, float]]
    error: str = ''

    @property
    def value(self) -> float:
        """The metric of the best epoch."""
        return max(record[METRIC] for record in self.curve)


def train(
    recipe: str,
    overrides: Sequence[str],
    run_dir: Path,
    minutes: float,
    prune: Callable[[int, float], bool],
) -> Outcome:
    """Trains for so many minutes at most, but for at least one validation.

    The same call goes on where a killed one was.

    Args:
        recipe: File or name of a packaged recipe.
        overrides: Changes of the recipe.
        run_dir: Folder of the run.
        minutes: Limit on training and validation together.
        prune: Told every epoch's number and metric, says whether to give up.
    """
    arguments = [str(run_dir), recipe, *overrides]
    process = child.start('benchmarks.search.trial', arguments)
    curve: list[dict[str, float]] = []
    spent = 0.0
    try:
        while True:
            code = process.poll()  # before the log, which is then complete
            for record in _epochs(run_dir / 'log.jsonl', len(curve)):
                last = record['seconds'] + record['eval_seconds']
                spent += last
                value = record['metrics'][METRIC]
                found = {'epoch': record['epoch'], 'seconds': round(spent, 1)}
                curve.append({**found, METRIC: value})
                if prune(record['epoch'], value):
                    return Outcome('pruned', curve)
                if spent + last > 60 * minutes:
                    return Outcome('time is up', curve)
            if code == 0:
                return Outcome('complete', curve)
            if code is not None:
                return Outcome('failed', curve, f'exit status {code}')
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        child.stop(process)
        raise
    finally:
        child.kill(process)


def _epochs(path: Path, known: int) -> list[dict[str, Any]]:
    """The validations in a log but for the first ones; a half-written line waits."""
    if not path.is_file():
        return []
    lines = path.read_text().split('\n')[:-1]
    records = [json.loads(line) for line in lines]
    return [record for record in records if record.get('metrics')][known:]


def main() -> None:
    child.follow_parent()
    from hellm_pyg import experiment
    from hellm_pyg.allocator import keep_freed_memory
    from hellm_pyg.config import load_config

    keep_freed_memory()
    run_dir, recipe, *overrides = sys.argv[1:]
    experiment.pretrain(load_config(recipe, overrides), run_dir)


if __name__ == '__main__':
    main()
