"""Which parameters are decayed, and how fast they move."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from hellm_pyg.config import TrainConfig


def learning_rate(config: TrainConfig, epoch: float) -> float:
    r"""The learning rate after ``epoch`` epochs, a step being a fraction of one.

    With :math:`\eta` = ``lr``, :math:`w` = ``warmup_epochs`` and
    :math:`p = (e - w) / (E - w)`, the rate is :math:`\eta e / w` for :math:`e < w`
    and then

    .. math::

        \text{constant:} &\quad \eta \\
        \text{exponential:} &\quad \eta \cdot 0.96^{\lfloor e \rfloor / 50} \\
        \text{linear:} &\quad \eta_{\min} + (\eta - \eta_{\min}) (1 - p) \\
        \text{cosine:} &\quad \eta_{\min} + (\eta - \eta_{\min}) \,
        \tfrac{1}{2} (1 + \cos \pi p)

    so that the first step of a warm-up has the rate 0, and the end of the last epoch
    ``min_lr``.
    """
    warmup = config.warmup_epochs
    if epoch < warmup:
        return config.lr * epoch / warmup
    if config.schedule == 'constant':
        return config.lr
    if config.schedule == 'exponential':
        return config.lr * 0.96 ** (math.floor(epoch) / 50)
    span = config.epochs - warmup
    part = min((epoch - warmup) / span, 1.0) if span > 0 else 1.0
    left = (1 + math.cos(math.pi * part)) / 2
    if config.schedule == 'linear':
        left = 1 - part
    return config.min_lr + (config.lr - config.min_lr) * left


def parameter_groups(
    model: torch.nn.Module,
    weight_decay: float,
    decay: Literal['matrices', 'all'] = 'matrices',
) -> list[dict[str, Any]]:
    """The trained parameters, apart by whether weight decay applies to them.

    Args:
        model: The model; parameters without gradient are left out.
        weight_decay: Weight decay of the first group.
        decay: ``'matrices'`` decays parameters of two or more dimensions (weights and
            embeddings), ``'all'`` also biases, norms and gates.

    Raises:
        ValueError: If there is nothing to train.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            f"'model' needs parameters that are trained (got none in "
            f'{type(model).__name__}): evaluate it as it is'
        )
    chosen = [p for p in trained if decay == 'all' or p.dim() >= 2]
    spared = [p for p in trained if decay != 'all' and p.dim() < 2]
    groups = ((chosen, weight_decay), (spared, 0.0))
    return [{'params': p, 'weight_decay': value} for p, value in groups if p]


def build_optimizer(
    model: torch.nn.Module, config: TrainConfig
) -> torch.optim.Optimizer:
    """Adam or AdamW over :func:`parameter_groups`.

    Raises:
        ValueError: If there is nothing to train.
    """
    groups = parameter_groups(model, config.weight_decay, config.decay)
    kinds = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW}
    # A pass over all parameters, not a dozen small operations for each.
    return kinds[config.optimizer](groups, lr=config.lr, betas=config.betas, fused=True)
