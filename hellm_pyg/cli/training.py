"""``hellm pretrain``, ``hellm finetune`` and ``hellm ensemble``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from hellm_pyg.cli.arguments import Arguments, Out, read_config
from hellm_pyg.cli.output import print_columns, print_table
from hellm_pyg.config import Config


def pretrain(arguments: Arguments, out: Out) -> None:
    """Train a model of phase 1: HeLLMPre, SASRec, LightGCN, ...

    \b
    hellm pretrain pretrain_best --out runs/beauty/pretrain_best
    hellm pretrain sasrec --out runs/beauty/sasrec
    hellm pretrain sasrec_best --out runs/beauty/sasrec_best
    hellm pretrain pretrain_best dataset=shop --out runs/shop/graph
    hellm pretrain sasrec dataset=toys train.lr=3e-4 --out runs/toys/slow
    hellm pretrain sasrec model.name=Popularity --out runs/beauty/popularity
    """
    from hellm_pyg import experiment

    config = read_config(arguments)
    _print_validation(out, config, experiment.pretrain(config, out))


def finetune(
    arguments: Arguments,
    out: Out,
    llm: Annotated[
        str | None, typer.Option(help='Hub name or folder of the language model.')
    ] = None,
) -> None:
    """Train a language-model recommender (phase 2) on tables of phase 1.

    Unless given, finetune_best reads the runs of the examples of pretrain. Of another
    language model than SmolLM2, llm.num_layers=null takes all layers.

    \b
    hellm finetune finetune_best --out runs/beauty/hellm
    hellm finetune finetune_best dataset=shop --out runs/shop/hellm \\
        llm.tables.graph=runs/shop/graph llm.tables.seq=runs/shop/seq \\
        train.distill.runs.plain=runs/shop/plain \\
        train.distill.runs.smoothed=runs/shop/seq
    hellm finetune finetune_best llm.num_layers=8 --out runs/beauty/eight_layers
    hellm finetune finetune_best --llm Qwen/Qwen2.5-0.5B llm.num_layers=null \\
        --out runs/beauty/qwen
    """
    from hellm_pyg import experiment

    extra = [] if llm is None else [f'llm.name={llm}']
    config = read_config(arguments, extra)
    _print_validation(out, config, experiment.finetune(config, out))


def ensemble(
    out: Out,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='RECIPE|A.B=C',
            help='Recipe file or name of a packaged one, ensemble unless given, then '
            'overrides as of pretrain.',
        ),
    ] = None,
) -> None:
    """Combine trained runs into one model, with weights chosen on validation.

    The folder holds copies of the members: it can be evaluated, recommended from
    and moved like any other run.

    \b
    hellm ensemble --out runs/beauty/all
    hellm ensemble dataset=shop --out runs/shop/all \\
        ensemble.members.hellm=runs/shop/hellm \\
        ensemble.members.graph=runs/shop/graph ensemble.members.seq=runs/shop/seq
    hellm ensemble 'ensemble.members={a: runs/a, b: runs/b}' --out runs/both
    """
    from hellm_pyg import experiment
    from hellm_pyg.run_folder import read_metrics

    given = arguments or []
    if not given or ('=' in given[0] and not Path(given[0]).is_file()):
        given = ['ensemble', *given]
    config = read_config(given)
    metrics = experiment.ensemble(config, out)
    found = read_metrics(out)
    rows = {
        name: [f'{found["weights"][name]:g}', *_decimals(one['metrics'])]
        for name, one in found['members'].items()
    }
    rows['all together'] = ['', *_decimals(metrics)]
    print_columns(_title(out, config), ['weight', *metrics], rows)


def _print_validation(out: Path, config: Config, metrics: Mapping[str, float]) -> None:
    if metrics:
        print_table(_title(out, config), metrics)
    else:
        print_table(f'{out}: trained on the validation items, not validated', {})


def _title(out: Path, config: Config) -> str:
    from hellm_pyg.evaluation import Protocol

    return f'{out}: validation, {Protocol(config.eval.history, config.eval.mask)}'


def _decimals(metrics: Mapping[str, float]) -> list[str]:
    return [f'{value:.4f}' for value in metrics.values()]
