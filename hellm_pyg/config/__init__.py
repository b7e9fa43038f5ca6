"""Experiments as data: nested dataclasses to and from YAML."""

from hellm_pyg.config.parse import nearest, parse
from hellm_pyg.config.recipe import (
    PREPARED,
    load_config,
    load_run_config,
    recipes,
    save_config,
    save_data_config,
    to_dict,
)
from hellm_pyg.config.sections import (
    Config,
    DataConfig,
    DistillConfig,
    EnsembleConfig,
    EvalConfig,
    LLMConfig,
    SmoothingConfig,
    TrainConfig,
)

__all__ = [
    'PREPARED',
    'Config',
    'DataConfig',
    'DistillConfig',
    'EnsembleConfig',
    'EvalConfig',
    'LLMConfig',
    'SmoothingConfig',
    'TrainConfig',
    'load_config',
    'load_run_config',
    'nearest',
    'parse',
    'recipes',
    'save_config',
    'save_data_config',
    'to_dict',
]
