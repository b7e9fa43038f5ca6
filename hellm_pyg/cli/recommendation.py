"""``hellm recommend``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hellm_pyg.cli.arguments import Overrides, RunFolder, named_files
from hellm_pyg.keys import in_words

if TYPE_CHECKING:
    from hellm_pyg.datasets import IdMap
    from hellm_pyg.recommendation import Recommendation


def recommend(
    run: RunFolder,
    overrides: Overrides = None,
    user: Annotated[
        list[str] | None, typer.Option('--user', '-u', help='User id (repeatable).')
    ] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(
            help='Item ids of a new user, oldest first, separated by blanks; ids '
            'that hold blanks go in double quotes (repeatable).'
        ),
    ] = None,
    k: Annotated[int, typer.Option('-k', help='Number of items.', min=1)] = 10,
    everyone: Annotated[
        bool, typer.Option('--all', help='For all users; needs --out.')
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option('--out', '-o', help='.parquet, .csv or .jsonl file.'),
    ] = None,
    include_seen: Annotated[
        bool, typer.Option('--include-seen', help='Recommend known items, too.')
    ] = False,
    candidates: Annotated[
        Path | None,
        typer.Option(
            help='Text file of the item ids that may be recommended, one a line.'
        ),
    ] = None,
    new_items: Annotated[
        Path | None,
        typer.Option(
            metavar='FILE',
            help="Table with the catalogue's columns whose unknown items are "
            'recommended, too; known ones are passed over.',
        ),
    ] = None,
    new_features: Annotated[
        list[str] | None,
        typer.Option(
            metavar='NAME=FILE',
            help='Features whose rows follow that table: .npy or .safetensors '
            '(repeatable). Texts are encoded without them, as hellm did before.',
        ),
    ] = None,
) -> None:
    """Recommend items to known users, to new ones, or to all.

    \b
    hellm recommend runs/beauty/hellm --user 42 --user 43 -k 5
    hellm recommend runs/beauty/hellm --history '17 4711 8'
    hellm recommend runs/shop/hellm --history '"red shoe" hat-7'
    hellm recommend runs/beauty/hellm --all --out top.parquet
    hellm recommend runs/shop/hellm --user C-1042 --candidates stock.txt
    hellm recommend runs/shop/hellm --user C-1042 --new-items catalogue.csv
    """
    from hellm_pyg import recommendation
    from hellm_pyg.experiment import load_run, read_new_items
    from hellm_pyg.training.processes import make_accelerator

    if everyone and out is None:
        raise ValueError("'--all' needs a file: --out top.parquet (.csv, .jsonl)")
    if everyone and (user or history):
        raise ValueError(
            f"'--all' stands for all users (got '--user' {user or []} and '--history' "
            f'{history or []}): leave them, or it, out'
        )
    if not (user or history or everyone):
        raise ValueError(
            "give '--user ID', '--history \"ID ID\"' or '--all --out FILE'"
        )
    if out is not None:
        recommendation.checked_path(out, '--out')
    histories = [split_ids(line) for line in history or []]
    if [] in histories:
        empty = (history or [])[histories.index([])]
        raise ValueError(f"'--history' needs at least one item id (got {empty!r})")
    if new_features and new_items is None:
        raise ValueError(
            f"'--new-features' describes the rows of '--new-items' (got "
            f'{new_features} without it): give the table, too'
        )
    given = named_files(new_features or [], '--new-features')
    loaded = load_run(run, overrides or [])
    model, data, ids = loaded.model, loaded.data, loaded.ids
    known = ids.user_id(ids.user_index(user or []))
    if next(model.parameters(), None) is not None:  # else it counts, on the CPU
        model.to(make_accelerator().device)
    common: dict[str, Any] = {'k': k, 'exclude_seen': not include_seen}
    common['max_len'] = loaded.config.train.max_len
    common['batch_size'] = loaded.config.eval.batch_size
    every = ids
    with in_words({'items': '--new-items', 'features': '--new-features'}):
        if new_items is not None:
            new = read_new_items(loaded, new_items, given, progress=True)
            typer.echo(f'{new_items}: new items: {len(new.ids):,}', err=True)
            every = ids.with_items(new.ids, new.titles)
            common['new_items'] = new
        if candidates is not None:
            common['candidates'] = _candidates(candidates, every)
        if everyone and out is not None:
            common['progress'] = True
            count = recommendation.export_top_n(model, data, ids, out, **common)
            typer.echo(f'{out}: {count:,} rows')
            return
        rows = recommendation.recommend(model, data, ids, known, histories, **common)
    if out is not None:
        recommendation.write_rows(rows, out, every)
        typer.echo(f'{out}: {len(rows):,} rows')
    else:
        names: list[tuple[Any, int | None]] = [(name, None) for name in known]
        names += [(None, number) for number in range(1, len(histories) + 1)]
        _print_lists(names, rows)


def _candidates(path: Path, ids: IdMap) -> list[Any]:
    """The items of a file that the model knows; a message tells of others."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"'--candidates' needs a readable text file in UTF-8 (got '{path}': "
            f'{error})'
        ) from error
    named = [line.strip() for line in lines if line.strip()]
    known = ids.known_items(named)
    if not known:
        raise ValueError(
            f"'--candidates' needs at least one item id that the model knows, one a "
            f"line (got {named[:5]} in '{path}')"
        )
    if len(known) < len(named):
        others = len(named) - len(known)
        typer.echo(f'{path}: {others:,} of {len(named):,} items are unknown', err=True)
    return known


def split_ids(line: str) -> list[str]:
    """The ids of a line: blanks separate them, double quotes hold blanks."""
    # Unlike a shell's rules, apostrophes and backslashes are part of an id.
    reader = csv.reader([line], delimiter=' ', skipinitialspace=True)
    return [part for part in next(reader) if part]


def _print_lists(
    users: Sequence[tuple[Any, int | None]], rows: Sequence[Recommendation]
) -> None:
    """Prints the list of each user (id, or number of the history), even if empty."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    start = 0
    for user, history in users:
        name = f'User {user}' if history is None else f'New user {history}'
        typer.secho(name, bold=True)
        table = Table()
        for column in ('rank', 'item', 'title', 'score'):
            table.add_column(column, overflow='fold')
        # A list may be shorter than k; the same user may be asked for twice.
        for rank, row in enumerate(rows[start:], 1):
            if (row.user, row.history, row.rank) != (user, history, rank):
                break
            score = f'{row.score:.4f}'
            item, title = escape(str(row.item)), escape(row.title or '')
            table.add_row(str(rank), item, title, score)
        start += table.row_count
        if table.row_count == 0:
            typer.echo('no item is left to recommend')
        else:
            Console().print(table)
