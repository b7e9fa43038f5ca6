"""``hellm prepare``: a recipe's data, a shop's tables, Amazon's reviews."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from hellm_pyg.cli.arguments import Arguments, read_config
from hellm_pyg.cli.output import print_table
from hellm_pyg.config import recipes

if TYPE_CHECKING:
    from hellm_pyg.preparation import Prepared

RECIPE = 'recipe'


class RecipeOrCommand(TyperGroup):
    """Takes what is no command for a recipe: ``hellm prepare pretrain_best``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names."""
        first = args[0]
        is_recipe = '=' in first or first in recipes() or Path(first).is_file()
        others = [name for name in self.commands if name != RECIPE]
        mistyped = get_close_matches(first.lower(), others, 1)
        if first not in self.commands and (is_recipe or not mistyped):
            args = [RECIPE, *args]
        return super().resolve_command(ctx, args)


prepare = typer.Typer(
    cls=RecipeOrCommand,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Make data ready: a shop's tables, Amazon's reviews, or a recipe's data.

    \b
    hellm prepare table --interactions orders.csv --items catalogue.csv --out shop
    hellm prepare amazon --name Beauty --out beauty
    hellm prepare pretrain_best dataset=toys
    """,
)


@prepare.command(RECIPE)
def prepare_recipe(arguments: Arguments) -> None:
    """Read the data of a recipe, build the graphs, cache them.

    The word 'recipe' may be left out.

    \b
    hellm prepare pretrain_best
    hellm prepare pretrain_best dataset=toys
    hellm prepare data.interactions=shop.csv data.user=customer data.item=sku \\
        data.time=date data.items=items.csv data.item_id=sku \\
        data.features.text=text.npy
    """
    from hellm_pyg.assembly import load_dataset, statistics
    from hellm_pyg.datasets.card import write_card
    from hellm_pyg.datasets.provenance import table_provenance
    from hellm_pyg.preparation.folder import split_line

    config = read_config(arguments).data
    dataset = load_dataset(config)
    data = dataset[0]
    provenance = table_provenance(dataset.report, split=split_line(config))
    card, _ = write_card(dataset.processed_dir, data, provenance)
    print_table('Data', statistics(data))
    typer.echo(f'Data card: {card}')


def report(prepared: Prepared) -> None:
    """Prints what a prepared folder holds and what may be done with it."""
    from hellm_pyg.assembly import statistics

    for note in prepared.notes:
        typer.echo(note)
    print_table(f'{prepared.folder}: data', statistics(prepared.data))
    typer.echo(f'Data card: {prepared.folder / "data_card.md"}\n')
    typer.secho('Next', bold=True)
    for line in next_steps(prepared):
        typer.echo(f'  {line}')


def next_steps(prepared: Prepared) -> list[str]:
    """The commands that train on a prepared folder and recommend from it."""
    import shlex

    runs = f'runs/{prepared.folder.name}'
    graph = [] if prepared.modalities else ['model.i2i=false']
    tables = [f'llm.tables.{name}={runs}/{name}' for name in ('graph', 'seq')]
    data = f'dataset={prepared.folder}'
    user = str(prepared.ids.users[0])
    sequences = [['pretrain', 'sasrec', data, '--out', f'{runs}/seq']]
    teachers = ['train.distill.runs={}', f'train.distill.runs.plain={runs}/seq']
    if prepared.modalities:  # along which the targets of 'sasrec_best' are smoothed
        sequences = [
            ['pretrain', 'sasrec', data, '--out', f'{runs}/plain'],
            ['pretrain', 'sasrec_best', data, '--out', f'{runs}/seq'],
        ]
        teachers = [
            f'train.distill.runs.plain={runs}/plain',
            f'train.distill.runs.smoothed={runs}/seq',
        ]
    read = [*tables, *teachers]
    commands = [
        ['pretrain', 'pretrain_best', data, *graph, '--out', f'{runs}/graph'],
        *sequences,
        ['finetune', 'finetune_best', data, *read, '--out', f'{runs}/hellm'],
        ['evaluate', f'{runs}/hellm'],
        ['recommend', f'{runs}/hellm', '--user', user, '-k', '10'],
    ]
    return [f'hellm {shlex.join(command)}' for command in commands]
