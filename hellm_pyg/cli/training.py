"""``hellm pretrain`` and ``hellm finetune``."""

from __future__ import annotations

from typing import Annotated

import typer

from hellm_pyg.cli.arguments import Arguments, Out, read_config
from hellm_pyg.cli.output import print_table


def pretrain(arguments: Arguments, out: Out) -> None:
    """Train a model of phase 1: HeLLMPre, SASRec, LightGCN, ...

    \b
    hellm pretrain pretrain_best --out runs/beauty/pretrain_best
    hellm pretrain pretrain_best dataset=shop --out runs/shop/graph
    hellm pretrain sasrec dataset=toys train.lr=3e-4 --out runs/toys/sasrec
    hellm pretrain sasrec model.name=Popularity --out runs/beauty/popularity
    """
    from hellm_pyg import experiment

    metrics = experiment.pretrain(read_config(arguments), out)
    print_table(f'{out}: validation', metrics)


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
    hellm finetune finetune_best dataset=shop --out runs/shop/hellm \\
        llm.tables.graph=runs/shop/graph llm.tables.seq=runs/shop/seq
    hellm finetune finetune_best llm.num_layers=8 --out runs/beauty/small
    hellm finetune finetune_best --llm Qwen/Qwen2.5-0.5B --out runs/beauty/qwen
    """
    from hellm_pyg import experiment

    extra = [] if llm is None else [f'llm.name={llm}']
    metrics = experiment.finetune(read_config(arguments, extra), out)
    print_table(f'{out}: validation', metrics)
