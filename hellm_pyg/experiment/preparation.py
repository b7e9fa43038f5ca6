"""What comes before the training: the phase, the processes, the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

from hellm_pyg.assembly import build_data, training_data
from hellm_pyg.config import Config
from hellm_pyg.datasets.ids import IdMap

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_phase(command: str, section: str, config: Config) -> None:
    """Refuses a configuration that is not of the section's kind alone.

    Raises:
        ValueError: If the section is missing or stands beside another one's.
    """
    given = {
        'model': config.model.get('name') if config.model else None,
        'llm': config.llm and config.llm.name,
        'ensemble': config.ensemble and list(config.ensemble.members),
    }
    if [name for name in given if getattr(config, name)] != [section]:
        others = ', '.join(
            f"'{name}: {{}}'" if name == 'model' else f"'{name}: null'"
            for name in given
            if name != section
        )
        values = ', '.join(f'{name}={value}' for name, value in given.items())
        raise ValueError(
            f"'{command}' needs a recipe with a section '{section}', {others} (got "
            f'{values})'
        )


def prepare(config: Config) -> tuple[Accelerator, HeteroData, IdMap]:
    """The processes, and what they train on, which the first of them prepares."""
    from hellm_pyg.training.processes import main_first, make_accelerator

    accelerator = make_accelerator()
    with main_first(accelerator):
        data, ids = build_data(config.data)
    seed_everything(config.train.seed)
    return accelerator, training_data(config, data), ids


def own_share(model: torch.nn.Module, accelerator: Accelerator) -> tuple[int, int]:
    """Moves a model to its device; the share of users that this process ranks."""
    if next(model.parameters(), None) is None:
        return 0, 1
    model.to(accelerator.device)
    return accelerator.process_index, accelerator.num_processes
