"""What a student is to learn, from the scores of both sides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hellm_pyg.nn import SoftTargets


def lesson(
    num_targets: int, num_items: int, weight: float, dtype: torch.dtype = torch.double
) -> tuple[SoftTargets, Tensor]:
    """Soft targets, and their probabilities [T, I]."""
    generator = torch.Generator().manual_seed(num_targets)
    logits = torch.randn(num_targets, num_items, generator=generator, dtype=dtype)
    p = logits.softmax(dim=1)
    return SoftTargets(weight, torch.arange(num_targets), lambda index: p[index]), p


def assert_learns(
    loss: Callable[[SoftTargets | None], Tensor],
    scores: Tensor,
    kept: list[int] | None = None,
    weight: float = 0.3,
    num_targets: int | None = None,
) -> None:
    """The loss with a teacher is that without one and a cross-entropy with it.

    Args:
        loss: The student's, of soft targets or without any.
        scores: Its scores after what each target follows, [T', I].
        kept: Which targets count.
        weight: The teacher's.
        num_targets: Number of targets, also of those that do not count.
    """
    number = len(scores) if num_targets is None else num_targets
    soft, p = lesson(number, scores.size(1), weight, scores.dtype)
    p = p if kept is None else p[kept]
    taught = -(p * scores.log_softmax(dim=1)).sum(dim=1).mean()
    expected = (1 - weight) * loss(None) + weight * taught
    torch.testing.assert_close(loss(soft), expected)
