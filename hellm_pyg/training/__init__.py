"""One trainer for every model, resumable at any moment."""

from hellm_pyg.training.schedule import (
    build_optimizer,
    learning_rate,
    parameter_groups,
)
from hellm_pyg.training.step import Trainable
from hellm_pyg.training.trainer import NonFiniteLossError, Trainer

__all__ = [
    'NonFiniteLossError',
    'Trainable',
    'Trainer',
    'build_optimizer',
    'learning_rate',
    'parameter_groups',
]
