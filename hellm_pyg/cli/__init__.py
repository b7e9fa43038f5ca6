"""The command line: ``hellm prepare | pretrain | finetune | evaluate | ...``."""

from __future__ import annotations

from hellm_pyg.allocator import keep_freed_memory
from hellm_pyg.cli.application import Command, app
from hellm_pyg.cli.checks import doctor
from hellm_pyg.cli.evaluation import evaluate
from hellm_pyg.cli.features import features
from hellm_pyg.cli.prepare import prepare
from hellm_pyg.cli.prepare_amazon import prepare_amazon
from hellm_pyg.cli.prepare_table import prepare_table
from hellm_pyg.cli.recommendation import recommend
from hellm_pyg.cli.scripts import benchmark, demo
from hellm_pyg.cli.training import ensemble, finetune, pretrain

__all__ = ['app', 'main']

# Of others, options change keys of a recipe, which errors name.
app.command(cls=Command)(features)
for _command in (pretrain, finetune, ensemble, evaluate, recommend, doctor, demo):
    app.command()(_command)
app.command(
    context_settings={'allow_extra_args': True, 'ignore_unknown_options': True},
    add_help_option=False,
)(benchmark)
prepare.command('table', cls=Command)(prepare_table)
prepare.command('amazon', cls=Command)(prepare_amazon)
app.add_typer(prepare, name='prepare')


def main() -> None:
    """Entry point of ``hellm`` and ``python -m hellm_pyg``."""
    keep_freed_memory()
    app(prog_name='hellm')
