"""What happens to rows that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

BadRows = Literal['refuse', 'drop']


class RowCheck:
    """Refuses the first bad row, or drops and counts all of them.

    Args:
        source: The file, for messages.
        policy: ``'refuse'`` or ``'drop'``.
        num_rows: Number of rows :math:`N`.
        remedy: What a refusal ends in.
    """

    def __init__(
        self, source: object, policy: BadRows, num_rows: int, remedy: str = ''
    ) -> None:
        if policy not in ('refuse', 'drop'):
            raise ValueError(
                f"'bad_rows' needs to be 'refuse' or 'drop' (got {policy!r})"
            )
        self.source = source
        self.drops = policy == 'drop'
        self.remedy = remedy
        self.dropped: dict[str, int] = {}
        self.kept = np.ones(num_rows, dtype=bool)

    @property
    def all_kept(self) -> bool:
        """Whether no row was dropped."""
        return not self.dropped

    def __call__(
        self, bad: NDArray[np.bool_], reason: str, message: Callable[[int], str]
    ) -> None:
        """Takes note of rows.

        Args:
            bad: Which rows are bad, of shape :math:`[N]`.
            reason: What they are counted as; a row counts once.
            message: From the position of a row to what is wrong with it.

        Raises:
            ValueError: If there are bad rows and they are refused.
        """
        if not bad.any():
            return
        if not self.drops:
            text = message(int(bad.argmax()))
            raise ValueError(f"'{self.source}': {text}{self.remedy}")
        count = int((bad & self.kept).sum())
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count
            self.kept &= ~bad
