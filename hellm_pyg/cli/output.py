"""Tables in the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping

import typer


def print_table(title: str, rows: Mapping[str, object]) -> None:
    """Prints names and values; of several processes the first one speaks."""
    from rich.console import Console
    from rich.table import Table

    if os.environ.get('RANK', '0') != '0':
        return
    typer.secho(title, bold=True)
    table = Table(show_header=False)
    numbers = all(isinstance(value, int | float) for value in rows.values())
    table.add_column(no_wrap=True)
    table.add_column(justify='right' if numbers else 'left', overflow='fold')
    for name, value in rows.items():
        text = f'{value:,}' if isinstance(value, int) else str(value)
        table.add_row(name, f'{value:.4f}' if isinstance(value, float) else text)
    Console().print(table)
