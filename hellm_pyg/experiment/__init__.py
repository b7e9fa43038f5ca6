"""Runs: a configuration trained into a folder, and a model taken out of it."""

from hellm_pyg.experiment.combination import ensemble
from hellm_pyg.experiment.evaluation import (
    Run,
    evaluate_run,
    evaluate_run_protocols,
    load_run,
)
from hellm_pyg.experiment.new_items import read_new_items
from hellm_pyg.experiment.training import finetune, pretrain

__all__ = [
    'Run',
    'ensemble',
    'evaluate_run',
    'evaluate_run_protocols',
    'finetune',
    'load_run',
    'pretrain',
    'read_new_items',
]
