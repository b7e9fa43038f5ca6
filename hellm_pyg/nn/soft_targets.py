"""What a teacher tells about targets beside the right items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class SoftTargets:
    r"""Probabilities of a teacher, which share a target's weight with the right item.

    Follows `"Distilling the Knowledge in a Neural Network"
    <https://arxiv.org/abs/1503.02531>`_, at a temperature of one. With the share
    :math:`\lambda`, the teacher's probabilities :math:`\mathbf{p}_t` and the own
    distribution :math:`\mathbf{q}_t` of a target, which is one-hot unless smoothed, a
    student learns

    .. math::
        (1 - \lambda) \, \mathbf{q}_t + \lambda \, \mathbf{p}_t.

    The probabilities of all targets may be too many to be held. They are computed for
    those that are asked for.

    Args:
        weight: The share :math:`\lambda`.
        index: Which of the teacher's targets these are, int64 of shape :math:`[T]`,
            ascending.
        probability: Returns :math:`\mathbf{p}`, float of shape :math:`[t, I]`, of the
            :math:`t` targets of such an index.
    """

    weight: float
    index: Tensor
    probability: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"'weight' needs to lie in (0, 1] (got {self.weight})")

    def of(self, kept: Tensor) -> SoftTargets:
        """Returns those of some targets, which count anew.

        Args:
            kept: Which targets are left, bool of shape :math:`[T]`.
        """
        return replace(self, index=self.index[kept])

    def __getitem__(self, rows: slice) -> Tensor:
        """Returns the probabilities of a part of the targets, :math:`[t, I]`."""
        return self.probability(self.index[rows])
