"""Several trained recommenders as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.nn.standardize import standardize


class Ensemble(torch.nn.Module):
    r"""A weighted sum of the members' standardised scores.

    .. math::
        s(u, i) = \sum_m w_m \, \frac{s_m(u, i) - \mu_m(u)}{\sigma_m(u)}

    :math:`\mu_m(u)` and :math:`\sigma_m(u)` are the mean and the standard deviation
    of member :math:`m`'s scores over the whole catalogue, seen items included. A
    member that scores all items of a row alike adds zero to it. Members of weight
    zero are neither encoded nor scored.

    Args:
        members: Trained recommenders of the same users and items, by name.
        weights: Weight :math:`w_m \geq 0` of every member.

    Raises:
        ValueError: If there are no members, the names differ, a weight is negative
            or not finite, or all are zero; when scoring, if a member's scores are
            NaN or infinite, or of another shape than the other members'.
    """

    sampling: ClassVar[Literal['pairs', 'sequences', 'none']] = 'none'

    def __init__(
        self,
        members: Mapping[str, torch.nn.Module],
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("'members' needs at least one recommender (got none)")
        if set(weights) != set(members):
            raise ValueError(
                f"'weights' needs one weight for each of the 'members' "
                f'{sorted(members)} (got {dict(weights)})'
            )
        bad = [w for w in weights.values() if not math.isfinite(w) or w < 0]
        if bad or not any(weights.values()):
            raise ValueError(
                f"'weights' needs finite numbers of 0 or more, one of them above 0 "
                f'(got {dict(weights)})'
            )
        self.weights = {name: float(weights[name]) for name in members}
        # A ModuleDict would refuse names such as 'items'.
        self.recommenders = torch.nn.ModuleList(members.values())

    @property
    def members(self) -> dict[str, Any]:
        """The members by name, in their order."""
        return dict(zip(self.weights, self.recommenders, strict=True))

    @property
    def max_len(self) -> int:
        """Most of the last items of a history that a member reads; 50 if none tells."""
        members = self.members.values()
        own = [int(m.max_len) for m in members if hasattr(m, 'max_len')]
        return max(own, default=50)

    def encode(self, data: HeteroData) -> dict[str, Any]:
        """Returns what each member of a weight above zero encodes, by name."""
        return {
            name: member.encode(data)
            for name, member in self.members.items()
            if self.weights[name] > 0
        }

    def score(self, encoded: Mapping[str, Any], batch: SequenceBatch) -> Tensor:
        """Scores all items for each row.

        Args:
            encoded: What :meth:`encode` returned.
            batch: Rows as every member reads them: users, of which -1 is unknown,
                and histories.

        Returns:
            Scores, fp32 of shape :math:`[B, I]`.
        """
        members, total = self.members, None
        for name, own in encoded.items():
            found = standardize(members[name].score(own, batch), name)
            if total is None:
                total = found.mul_(self.weights[name])
            elif found.shape == total.shape:
                total.add_(found, alpha=self.weights[name])
            else:
                raise ValueError(
                    f"'{name}' needs to score the items of the other members, "
                    f'{list(total.shape)} (got scores of shape {list(found.shape)}): '
                    f'it is of another catalogue'
                )
        assert total is not None  # one weight is above zero
        return total

    def extra_repr(self) -> str:
        """The weights."""
        return ', '.join(f'{name}={weight:g}' for name, weight in self.weights.items())
