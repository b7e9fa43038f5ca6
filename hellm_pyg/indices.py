"""Whether numbers of users, items and nodes lie where they may."""

from __future__ import annotations

from torch import Tensor


def check_indices(
    name: str, index: Tensor, size: int, kind: str, advice: str = ''
) -> None:
    """Refuses indices outside :math:`[0, size)`; waits for the device.

    Without it a negative one would count from the end, and one that is too large would
    stop the whole process on an accelerator.

    Args:
        name: What they are, for the message.
        index: The indices, of any shape.
        size: How many there are to choose from.
        kind: Of what.
        advice: What to do about others.

    Raises:
        ValueError: If one lies outside, or they are no whole numbers.
    """
    if index.is_floating_point() or index.is_complex():
        raise ValueError(f"'{name}' needs whole numbers (got {index.dtype})")
    if bool(((index < 0) | (index >= size)).any()):
        raise ValueError(
            f"'{name}' needs to lie in [0, {size}), the number of {kind} (got values "
            f'from {int(index.min())} to {int(index.max())})'
            + (f': {advice}' if advice else '')
        )
