"""The application: its help, its log and what becomes of errors."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hellm_pyg import __version__
from hellm_pyg.cli.processes import check_shared, launched, part, rank
from hellm_pyg.keys import reworded

# As a user meets them; others follow in the order of their registration.
ORDER = (
    'prepare',
    'features',
    'pretrain',
    'finetune',
    'ensemble',
    'evaluate',
    'recommend',
)


class Commands(TyperGroup):
    """Turns what users can mend into one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, first those of :obj:`ORDER`."""
        names = super().list_commands(ctx)
        return [name for name in ORDER if name in names] + [
            name for name in names if name not in ORDER
        ]

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            result = super().invoke(ctx)
            part()
            return result
        except (ValueError, OSError, ImportError) as error:
            if ctx.params.get('debug'):
                raise
            who = f'Process {rank()}: ' if rank() > 0 else ''
            typer.secho(f'{who}Error: {error}', fg='red', err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            text = '\nStopped. The same command goes on, a training from its last state'
            if launched() == 1:
                text += f':\n  hellm {shlex.join(sys.argv[1:])}'
            if rank() == 0:
                typer.secho(text, fg='yellow', err=True)
            raise typer.Exit(130) from None


class Command(TyperCommand):
    """Lets errors name options, whose arguments the command hands on, as typed."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except ValueError as error:
            options = {str(option.name): option.opts[0] for option in self.params}
            raise ValueError(reworded(str(error), options)) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    debug: Annotated[
        bool, typer.Option('--debug', help='Show tracebacks of errors.')
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            '--version', callback=_version, is_eager=True, help='Show the version.'
        ),
    ] = False,
) -> None:
    """Multimodal hypergraph and language-model recommenders.

    \b
    hellm prepare table --interactions orders.csv --items catalogue.csv --out shop
    hellm pretrain pretrain_best dataset=shop --out runs/shop/graph
    hellm pretrain sasrec_best dataset=shop --out runs/shop/seq
    hellm pretrain sasrec dataset=shop --out runs/shop/plain
    hellm finetune finetune_best dataset=shop --out runs/shop/hellm \\
        llm.tables.graph=runs/shop/graph llm.tables.seq=runs/shop/seq \\
        train.distill.runs.plain=runs/shop/plain \\
        train.distill.runs.smoothed=runs/shop/seq
    hellm evaluate runs/shop/hellm
    hellm recommend runs/shop/hellm --user C-1042 -k 10
    """
    check_shared(ctx.invoked_subcommand)
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
    if rank() > 0:
        logger.setLevel(logging.ERROR)
    # torch announces on every start that CSR matrices are new.
    warnings.filterwarnings('ignore', 'Sparse (CSR|invariant)')
