"""``hellm evaluate``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from hellm_pyg.cli.arguments import Overrides, RunFolder
from hellm_pyg.cli.output import print_table


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
    print_table(f'{run}: {split.value}, {result.protocol}', result.metrics)
