"""``hellm benchmark`` and ``hellm demo``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer


def benchmark(ctx: typer.Context) -> None:
    """Run a table of experiments (from a checkout of the repository).

    \b
    hellm benchmark benchmarks/paper/table1.yaml --help
    """
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if (folder / 'benchmarks' / 'run.py').is_file():
            command = [sys.executable, '-m', 'benchmarks.run', *ctx.args]
            paths = [str(folder), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
            env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))}
            raise typer.Exit(subprocess.call(command, env=env))
    raise ValueError(
        "'benchmark' runs from a checkout of the repository, the folder with "
        f"'benchmarks/run.py' (got {Path.cwd()}): clone it and change into it"
    )


def demo(
    out: Annotated[
        Path,
        typer.Argument(metavar='FOLDER', help='Folder of the runs.', file_okay=False),
    ] = Path('runs/demo'),
) -> None:
    """Run the whole way on MovieLens-100K: pre-train, fine-tune, recommend.

    A demo that was stopped goes on; remove the folder to start afresh.

    \b
    hellm demo
    hellm demo /tmp/demo
    """
    from hellm_pyg.demo import main as run_demo

    run_demo([str(out)])
