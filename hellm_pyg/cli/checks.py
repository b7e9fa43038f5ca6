"""``hellm doctor``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hellm_pyg.cli.arguments import Overrides
from hellm_pyg.cli.output import print_table
from hellm_pyg.config import load_config, load_run_config, nearest, recipes


def doctor(
    run: Annotated[
        str | None,
        typer.Option(help='Recipe (or run folder) whose memory is estimated.'),
    ] = None,
    overrides: Overrides = None,
    users: Annotated[
        int | None, typer.Option(help="Number of users (default: the data's).", min=1)
    ] = None,
    items: Annotated[
        int | None, typer.Option(help="Number of items (default: the data's).", min=1)
    ] = None,
) -> None:
    """Print versions, devices and fast paths; estimate the memory of a run.

    \b
    hellm doctor
    hellm doctor --run finetune_best
    hellm doctor --run finetune_released --users 22363 --items 12101
    """
    from hellm_pyg import doctor as checks

    if run is None:
        if overrides or users or items:
            raise ValueError(
                "'--run' needs the recipe or run folder whose memory is asked for: "
                f'hellm doctor --run finetune_best (got {overrides or []} without it)'
            )
        for title, rows in checks.report().items():
            print_table(title, rows)
        return
    from hellm_pyg.memory import estimate_run
    from hellm_pyg.run_folder import copies

    if Path(run).is_dir():
        config = load_run_config(Path(run) / 'config.yaml', overrides or [])
        if config.ensemble is not None:  # the members themselves may be gone
            members = copies(Path(run), config)
            ensemble = dataclasses.replace(config.ensemble, members=members)
            config = dataclasses.replace(config, ensemble=ensemble)
    elif not Path(run).is_file() and run not in recipes():
        raise ValueError(
            f"'--run' is neither the folder of a run, nor a file, nor a packaged "
            f'recipe (got {run!r}); of the recipes, the nearest is '
            f'{nearest(run, recipes())!r}'
        )
    else:
        config = load_config(run, overrides or [])
    memory = estimate_run(config, users, items)
    memory['sum'] = sum(memory.values())
    sizes = {name: checks.format_bytes(size) for name, size in memory.items()}
    what = 'training' if config.ensemble is None else 'ranking'
    print_table(f'{run}: memory of {what}', sizes)
