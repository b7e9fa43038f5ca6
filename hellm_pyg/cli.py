"""The command line: ``hellm prepare | pretrain | finetune | evaluate | ...``."""

from __future__ import annotations

import csv
import logging
import os
import shlex
import subprocess
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hellm_pyg.config import Config, load_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hellm_pyg.recommendation import Recommendation

ARGUMENTS = 'RECIPE [A.B=C]...'


class _Commands(TyperGroup):
    """Turns what users can mend into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, ImportError) as error:
            if ctx.params.get('debug'):
                raise
            typer.secho(f'Error: {error}', fg='red', err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.secho(
                '\nStopped. A training goes on from its last state with:\n'
                f'  hellm {shlex.join(sys.argv[1:])}',
                fg='yellow',
                err=True,
            )
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Split(StrEnum):
    """Part of the data that is ranked."""

    val = 'val'
    test = 'test'


class History(StrEnum):
    """What is read before a test target."""

    train = 'train'
    train_val = 'train+val'


class Mask(StrEnum):
    """What is not ranked."""

    seen = 'seen'
    train = 'train'
    none = 'none'


Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar=ARGUMENTS,
        help='Recipe file or name of a packaged one, then overrides; '
        "dataset=NAME picks one of the recipe's data sets.",
    ),
]
Out = Annotated[Path, typer.Option('--out', '-o', help='Folder of the run.')]
RunFolder = Annotated[Path, typer.Argument(metavar='RUN', help='Folder of a run.')]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar='A.B=C', help='Overrides.')
]


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option('--debug', help='Show tracebacks of errors.')
    ] = False,
) -> None:
    """Multimodal hypergraph and language-model recommenders.

    \b
    hellm prepare sasrec dataset=beauty
    hellm pretrain pretrain_best --out runs/beauty/pretrain_best
    hellm pretrain sasrec --out runs/beauty/sasrec
    hellm finetune finetune_best --out runs/beauty/hellm
    hellm evaluate runs/beauty/hellm
    hellm recommend runs/beauty/hellm --user 42 -k 10
    """
    from rich.console import Console
    from rich.logging import RichHandler

    # Known notes of torch and peft that say nothing to a user of the command line.
    for note in ('Sparse CSR tensor support', '`is_gradient_checkpointing`'):
        warnings.filterwarnings('ignore', f'.*{note}')
    handler = RichHandler(
        console=Console(stderr=True), show_path=False, log_time_format='%X'
    )
    logger = logging.getLogger('hellm_pyg')
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    # torch announces on every start that CSR matrices are new.
    warnings.filterwarnings('ignore', 'Sparse (CSR|invariant)')


def _config(arguments: Sequence[str], extra: Iterable[str] = ()) -> Config:
    recipe = arguments[0]
    if '=' in recipe and not Path(recipe).is_file():
        return load_config(None, [*arguments, *extra])
    return load_config(recipe, [*arguments[1:], *extra])


def _table(title: str, rows: Mapping[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    if os.environ.get('RANK', '0') != '0':
        return  # of several processes one speaks
    typer.secho(title, bold=True)
    table = Table(show_header=False)
    numbers = all(isinstance(value, int | float) for value in rows.values())
    table.add_column(no_wrap=True)
    table.add_column(justify='right' if numbers else 'left', overflow='fold')
    for name, value in rows.items():
        text = f'{value:,}' if isinstance(value, int) else str(value)
        table.add_row(name, f'{value:.4f}' if isinstance(value, float) else text)
    Console().print(table)


@app.command()
def prepare(arguments: Arguments) -> None:
    """Read interactions, items and features, build the graphs, cache them.

    \b
    hellm prepare pretrain_best
    hellm prepare pretrain_best dataset=toys
    hellm prepare data.interactions=shop.csv data.user=customer data.item=sku \\
        data.time=date data.items=items.csv data.item_id=sku \\
        data.features.text=text.npy
    """
    from hellm_pyg.assembly import build_data, statistics

    data, _ = build_data(_config(arguments).data)
    _table('Data', statistics(data))


@app.command()
def pretrain(arguments: Arguments, out: Out) -> None:
    """Train a model of phase 1: HeLLMPre, SASRec, LightGCN, ...

    \b
    hellm pretrain pretrain_best --out runs/beauty/pretrain_best
    hellm pretrain sasrec dataset=toys train.lr=3e-4 --out runs/toys/sasrec
    hellm pretrain sasrec model.name=Popularity --out runs/beauty/popularity
    """
    from hellm_pyg import experiment

    metrics = experiment.pretrain(_config(arguments), out)
    _table(f'{out}: validation', metrics)


@app.command()
def finetune(
    arguments: Arguments,
    out: Out,
    llm: Annotated[
        str | None, typer.Option(help='Hub name or folder of the language model.')
    ] = None,
) -> None:
    """Train a language-model recommender (phase 2) on tables of phase 1.

    \b
    hellm finetune finetune_best --out runs/beauty/hellm
    hellm finetune finetune_best llm.num_layers=8 --out runs/beauty/small
    hellm finetune finetune_best --llm Qwen/Qwen2.5-0.5B --out runs/beauty/qwen
    """
    from hellm_pyg import experiment

    extra = [] if llm is None else [f'llm.name={llm}']
    metrics = experiment.finetune(_config(arguments, extra), out)
    _table(f'{out}: validation', metrics)


@app.command()
def evaluate(
    run: RunFolder,
    overrides: Overrides = None,
    split: Annotated[Split, typer.Option(help='Part to rank.')] = Split.test,
    history: Annotated[
        History | None, typer.Option(help='What is read at test.')
    ] = None,
    mask: Annotated[Mask | None, typer.Option(help='What is not ranked.')] = None,
) -> None:
    """Rank all items for every user of a split; print and keep the metrics.

    The test items are read here and nowhere else. The protocol is that of the
    run's recipe unless given.

    \b
    hellm evaluate runs/beauty/hellm
    hellm evaluate runs/beauty/hellm --mask none
    hellm evaluate runs/beauty/pretrain_best --history train --mask train
    """
    from hellm_pyg import experiment

    extra = [] if history is None else [f'eval.history={history.value}']
    extra += [] if mask is None else [f'eval.mask={mask.value}']
    result = experiment.evaluate_run(run, split.value, [*(overrides or []), *extra])
    _table(f'{run}: {split.value}, {result.protocol}', result.metrics)


@app.command()
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
) -> None:
    """Recommend items to known users, to new ones, or to all.

    \b
    hellm recommend runs/beauty/hellm --user 42 --user 43 -k 5
    hellm recommend runs/beauty/hellm --history '17 4711 8'
    hellm recommend runs/shop/hellm --history '"red shoe" hat-7'
    hellm recommend runs/beauty/hellm --all --out top.parquet
    """
    from hellm_pyg import recommendation
    from hellm_pyg.experiment import load_run

    if everyone and out is None:
        raise ValueError("'--all' needs a file: --out top.parquet (.csv, .jsonl)")
    if not (user or history or everyone):
        raise ValueError(
            "give '--user ID', '--history \"ID ID\"' or '--all --out FILE'"
        )
    loaded = load_run(run, overrides or [])
    model, data, ids = loaded.model, loaded.data, loaded.ids
    common: dict[str, Any] = {'k': k, 'exclude_seen': not include_seen}
    common['max_len'] = loaded.config.train.max_len
    if everyone and out is not None:
        count = recommendation.export_top_n(model, data, ids, out, **common)
        typer.echo(f'{out}: {count:,} rows')
        return
    histories = [_split_ids(line) for line in history or []]
    rows = recommendation.recommend(model, data, ids, user or [], histories, **common)
    if out is not None:
        recommendation.write_rows(rows, out, ids)
        typer.echo(f'{out}: {len(rows):,} rows')
    else:
        _print_rows(rows, k)


def _split_ids(line: str) -> list[str]:
    # Unlike a shell's rules, apostrophes and backslashes are part of an id.
    reader = csv.reader([line], delimiter=' ', skipinitialspace=True)
    return [part for part in next(reader) if part]


def _print_rows(rows: Sequence[Recommendation], k: int) -> None:
    from rich.console import Console
    from rich.table import Table

    known = sum(row.user is not None for row in rows) // k
    for number in range(len(rows) // k):
        group = rows[number * k : (number + 1) * k]
        name = f'User {group[0].user}'
        if number >= known:
            name = f'New user {number - known + 1}'
        typer.secho(name, bold=True)
        table = Table()
        for column in ('rank', 'item', 'title', 'score'):
            table.add_column(column, overflow='fold')
        for row in group:
            score = f'{row.score:.4f}'
            table.add_row(str(row.rank), str(row.item), row.title or '', score)
        Console().print(table)


@app.command()
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
            _table(title, rows)
        return
    from hellm_pyg.memory import estimate_run

    path = Path(run) / 'config.yaml' if Path(run).is_dir() else run
    config = load_config(path, overrides or [])
    memory = estimate_run(config, users, items)
    memory['sum'] = sum(memory.values())
    sizes = {name: checks.format_bytes(size) for name, size in memory.items()}
    _table(f'{run}: memory of training', sizes)


@app.command(
    context_settings={'allow_extra_args': True, 'ignore_unknown_options': True},
    add_help_option=False,
)
def benchmark(ctx: typer.Context) -> None:
    """Run a table of experiments (from a checkout of the repository).

    \b
    hellm benchmark benchmarks/paper/table1.yaml --help
    """
    for folder in (Path.cwd(), Path(__file__).parents[1]):
        if (folder / 'benchmarks' / 'run.py').is_file():
            command = [sys.executable, '-m', 'benchmarks.run', *ctx.args]
            raise typer.Exit(subprocess.call(command, cwd=folder))
    raise ValueError(
        "'benchmark' runs from a checkout of the repository, the folder with "
        f"'benchmarks/run.py' (got {Path.cwd()}): clone it and change into it"
    )


@app.command()
def demo(
    out: Annotated[
        Path, typer.Argument(metavar='FOLDER', help='Folder of the runs.')
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


def main() -> None:
    """Entry point of ``hellm`` and ``python -m hellm_pyg``."""
    app(prog_name='hellm')
