"""From the sections of a configuration to data, models and loaders."""

from hellm_pyg.assembly.data import (
    build_data,
    load_dataset,
    statistics,
    training_data,
)
from hellm_pyg.assembly.language_model import (
    LLM_KEYS,
    PREFIX_FROM_LLM,
    build_llm,
    check_backbone,
    check_catalogue,
    item_table,
    table_width,
)
from hellm_pyg.assembly.models import (
    FROM_DATA,
    build_loader,
    build_model,
    checked_arguments,
    default_arguments,
    model_class,
    sampling_of,
)
from hellm_pyg.assembly.paths import resolve_paths

__all__ = [
    'FROM_DATA',
    'LLM_KEYS',
    'PREFIX_FROM_LLM',
    'build_data',
    'build_llm',
    'build_loader',
    'build_model',
    'check_backbone',
    'check_catalogue',
    'checked_arguments',
    'default_arguments',
    'item_table',
    'load_dataset',
    'model_class',
    'resolve_paths',
    'sampling_of',
    'statistics',
    'table_width',
    'training_data',
]
