"""What is ranked and read, and the numbers that come of it."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.batch import SequenceBatch


class Recommender(typing.Protocol):
    """What can be ranked: a model that encodes the data once and scores batches."""

    def encode(self, data: HeteroData) -> Any:
        """Returns whatever :meth:`score` needs of the data, users and items."""

    def score(self, encoded: Any, batch: SequenceBatch) -> Tensor:
        """Returns the scores of all items for every row, float of shape [B, I].

        Rows may have no items, and ``user`` is -1 for users that the model was not
        trained on. A row's scores must not depend on the other rows.
        """


@dataclass(frozen=True)
class Protocol:
    """What is read and what is ranked; printed with every number.

    At validation the history is the training part whatever ``history`` says.

    Args:
        history: What test targets are predicted from: ``'train+val'`` or
            ``'train'``. With the former, graph models propagate over the
            validation interactions, too.
        mask: Items that are not ranked: ``'seen'`` is everything before the target
            (training items, and at test the validation item, whatever the history),
            ``'train'`` the training items, ``'none'`` nothing. The target itself is
            always ranked.

    Raises:
        ValueError: On any other value.
    """

    history: Literal['train+val', 'train'] = 'train+val'
    mask: Literal['seen', 'train', 'none'] = 'seen'

    def __post_init__(self) -> None:
        if self.history not in ('train+val', 'train'):
            raise ValueError(
                f"'history' needs to be 'train+val' or 'train' (got {self.history!r})"
            )
        if self.mask not in ('seen', 'train', 'none'):
            raise ValueError(
                f"'mask' needs to be 'seen', 'train' or 'none' (got {self.mask!r})"
            )

    def __str__(self) -> str:
        return f'history={self.history}, mask={self.mask}'


HEADLINE = Protocol()


@dataclass(frozen=True)
class Evaluation:
    """Ranks of the targets and the means of their metrics.

    Args:
        metrics: ``'R@10'``, ``'N@10'``, ``'MRR@10'`` and so on, means over users.
        rank: Rank of each user's target, float of shape :math:`[n]`.
        user: The users, ascending, :math:`[n]`.
        split: ``'val'`` or ``'test'``.
        protocol: What was read and ranked.
        seconds: Wall-clock time, which protocols that were ranked at once share.
    """

    metrics: dict[str, float]
    rank: Tensor
    user: Tensor
    split: str
    protocol: Protocol
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the ranks as plain values."""
        return {
            'split': self.split,
            'history': self.protocol.history,
            'mask': self.protocol.mask,
            'users': self.user.numel(),
            'seconds': round(self.seconds, 3),
            'metrics': self.metrics,
        }

    def __str__(self) -> str:
        values = '  '.join(
            f'{name} {value:.4f}' for name, value in self.metrics.items()
        )
        return f'{self.split}, {self.user.numel():,} users, {self.protocol}: {values}'
