"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from hellm_pyg.cli.processes import rank


def print_table(title: str, rows: Mapping[str, object]) -> None:
    """Prints names and values; of several processes the first one speaks."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if rank() > 0:
        return
    typer.secho(title, bold=True)
    table = Table(show_header=False)
    numbers = all(isinstance(value, int | float) for value in rows.values())
    table.add_column(no_wrap=True)
    table.add_column(justify='right' if numbers else 'left', overflow='fold')
    for name, value in rows.items():
        text = f'{value:,}' if isinstance(value, int) else str(value)
        shown = f'{value:.4f}' if isinstance(value, float) else escape(text)
        table.add_row(escape(name), shown)
    if rows:
        Console().print(table)


def print_columns(
    title: str, names: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> None:
    """Prints a row for each name; of several processes the first one speaks."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if rank() > 0:
        return
    typer.secho(title, bold=True)
    table = Table()
    table.add_column(no_wrap=True)
    for name in names:
        table.add_column(name, justify='right', no_wrap=True)
    for name, values in rows.items():
        table.add_row(escape(name), *values)
    console = Console()
    # Rather lines that the terminal breaks than numbers cut off.
    unbounded = console.options.update(max_width=10_000)
    width = console.measure(table, options=unbounded).maximum
    console.width = max(console.width, width)
    console.print(table)
