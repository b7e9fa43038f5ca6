"""Values that are made from the tensors of the data once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar('T')


class Kept(Generic[T]):
    """A value that is kept for as long as it is made from the same tensors.

    It is no part of a model's state: copies and pickles of it are empty.
    """

    def __init__(self) -> None:
        self._sources: list[Tensor | int] = []
        self._value: list[T] = []

    def get(self, sources: Sequence[Tensor | int], make: Callable[[], T]) -> T:
        """Returns the value, made anew if a source is another one.

        It is made outside of inference mode: an evaluation may be the first to ask,
        and training must be able to go on.
        """
        same = len(sources) == len(self._sources) and all(
            new is old if isinstance(new, Tensor) else new == old
            for new, old in zip(sources, self._sources, strict=True)
        )
        if not same or not self._value:
            with torch.inference_mode(False), torch.no_grad():
                self._value = [make()]
            self._sources = list(sources)
        return self._value[0]

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()
