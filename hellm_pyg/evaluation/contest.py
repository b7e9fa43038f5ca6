"""The items that can stand before a target in a weighted sum of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Contest(NamedTuple):
    """What of a batch decides on the first ranks, whatever the weights.

    Args:
        row: Rows whose target some weights may bring among the first :math:`K`,
            :math:`[R]`.
        place: Position in ``row`` of each of their rivals, ascending, :math:`[M]`.
        scores: Scores by each model, of the targets and then of the rivals, of shape
            :math:`[R + M]`.
    """

    row: Tensor
    place: Tensor
    scores: list[Tensor]

    def rank(self, total: Tensor) -> Tensor:
        """Ranks of the targets by a sum of ``scores``, ties at their mean.

        Args:
            total: The sum, of shape :math:`[R + M]`.

        Returns:
            Ranks from 1, float of shape :math:`[R]`.
        """
        number = self.row.numel()
        own, other = total[:number][self.place], total[number:]
        above = self.place.masked_select(other > own).bincount(minlength=number)
        tied = self.place.masked_select(other == own).bincount(minlength=number)
        return 1 + above + tied / 2


def contest(
    scores: Sequence[Tensor],
    target: Tensor,
    mask_row: Tensor,
    mask_col: Tensor,
    k: int,
) -> Contest:
    r"""Leaves out what no weights of 0 or more can change.

    With weights :math:`w_m \geq 0`, the first of them above 0, an item :math:`j`
    stands before the target :math:`t` if all models prefer it, and behind it if none
    does:

    .. math::
        s_{mj} > s_{mt}\ \forall m \Rightarrow \sum_m w_m s_{mj} > \sum_m w_m s_{mt},
        \quad
        s_{mj} < s_{mt}\ \forall m \Rightarrow \sum_m w_m s_{mj} < \sum_m w_m s_{mt}

    A row with :math:`K` items of the first kind is lost; of the other rows the items
    of the second kind are no rivals.

    Args:
        scores: Finite scores by each model, of shape :math:`[B, I]`.
        target: Target item of each row, :math:`[B]`.
        mask_row: Row of each masked item, :math:`[N]`.
        mask_col: Masked items, :math:`[N]`. A row's own target is never masked.
        k: The :math:`K`.
    """
    chosen = target.unsqueeze(1)
    rival = torch.zeros_like(scores[0], dtype=torch.bool)
    before = ~rival
    for one in scores:
        own = one.gather(1, chosen)
        before &= one > own
        rival |= one >= own
    before[mask_row, mask_col] = False
    rival[mask_row, mask_col] = False
    rival.scatter_(1, chosen, False)
    kept = before.sum(dim=1, dtype=torch.int32) < k
    del before
    rival &= kept.unsqueeze(1)
    row = kept.nonzero().view(-1)
    number = rival[row].sum(dim=1, dtype=torch.int32)
    place = torch.arange(row.numel(), device=row.device).repeat_interleave(number)
    # Masks, unlike indices, stay at a byte a score.
    parts = [torch.cat([s[row, target[row]], s.masked_select(rival)]) for s in scores]
    return Contest(row, place, parts)
