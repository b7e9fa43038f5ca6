"""``hellm doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hellm_pyg.cli.arguments import Overrides
from hellm_pyg.cli.output import print_table
from hellm_pyg.config import load_config


def doctor(
    run: Annotated[
        str | None,
        typer.Option(help='Recipe (or run folder) whose memory is estimated.'),
    ] = None,
    overrides: Overrides = None,
    users: Annotated[int | None, typer.Option(help='Number of users.', min=1)] = None,
    items: Annotated[int | None, typer.Option(help='Number of items.', min=1)] = None,
) -> None:
    """Print versions, devices and fast paths; estimate the memory of a run.

    \b
    hellm doctor
    hellm doctor --run finetune_best
    hellm doctor --run finetune_released --users 22363 --items 12101
    """
    from hellm_pyg import doctor as checks

    if run is None:
        for title, rows in checks.report().items():
            print_table(title, rows)
        return
    from hellm_pyg.memory import estimate_run

    path = Path(run) / 'config.yaml' if Path(run).is_dir() else run
    config = load_config(path, overrides or [])
    memory = estimate_run(config, users, items)
    memory['sum'] = sum(memory.values())
    sizes = {name: checks.format_bytes(size) for name, size in memory.items()}
    print_table(f'{run}: memory of training', sizes)
