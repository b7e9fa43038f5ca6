"""Scores of different models on one scale."""

from __future__ import annotations

import torch
from torch import Tensor


def standardize(scores: Tensor, name: str = 'scores') -> Tensor:
    r"""Shifts and scales every row to mean 0 and variance 1.

    .. math::
        z_i = \frac{s_i - \mu}{\sigma}, \quad
        \mu = \frac{1}{I} \sum_i s_i, \quad
        \sigma^2 = \frac{1}{I} \sum_i (s_i - \mu)^2

    A row of equal scores, which prefers nothing, becomes zero.

    Args:
        scores: Scores, of shape :math:`[B, I]`; left untouched.
        name: What has given them, for the message.

    Returns:
        Scores, fp32 of shape :math:`[B, I]`.

    Raises:
        ValueError: If a score is NaN or infinite.
    """
    scores = scores.float()
    if scores.numel() == 0:
        return scores
    low, high = scores.aminmax(dim=1, keepdim=True)  # NaN if there is one
    spread = high - low
    if not bool(spread.isfinite().all()):
        bad = int((~scores.isfinite().all(dim=1)).sum())
        raise ValueError(
            f"'{name}' needs finite scores (got NaN or infinite ones in {bad} of "
            f'{len(scores)} rows): the model has diverged'
        )
    # In units of their spread, squares neither overflow nor vanish.
    unit = scores / spread.where(spread > 0, torch.inf)
    variance, mean = torch.var_mean(unit, dim=1, keepdim=True, correction=0)
    return unit.sub_(mean).mul_(variance.rsqrt().where(variance > 0, 0.0))
