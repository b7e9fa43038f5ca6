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
    variance, mean = torch.var_mean(scores, dim=1, keepdim=True, correction=0)
    if not bool(variance.isfinite().all()):  # neither is it with one such score
        bad = int((~scores.isfinite().all(dim=1)).sum())
        raise ValueError(
            f"'{name}' needs finite scores (got NaN or infinite ones in {bad} of "
            f'{len(scores)} rows): the model has diverged'
        )
    low, high = scores.aminmax(dim=1, keepdim=True)
    # The computed variance of equal scores need not be 0, that of close ones may be.
    varied = (low < high) & (variance > 0)
    scale = variance.rsqrt().where(varied, 0.0)
    return (scores - mean).mul_(scale)
