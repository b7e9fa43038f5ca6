"""Values that are made from the tensors of the data once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from hellm_pyg.nn.conv.incidence import stamp

T = TypeVar('T')


class Kept(Generic[T]):
    """A value that is kept for as long as it is made from the same, unchanged tensors.

    It is no part of a model's state: copies and pickles of it are empty.
    """

    def __init__(self) -> None:
        self._sources: list[Tensor | int] = []  # held, so that no id is used twice
        self._marks: list[tuple[int, ...] | int | None] = []
        self._value: list[T] = []

    def get(self, sources: Sequence[Tensor | int], make: Callable[[], T]) -> T:
        """Returns the value, made anew if a source is another or was changed in place.

        Nothing counts the changes of tensors that come from inference mode: of these
        it is made at every call. It is made outside of that mode: an evaluation may be
        the first to ask, and training must be able to go on.
        """
        marks = [_mark(source) for source in sources]
        if not self._value or None in marks or marks != self._marks:
            with torch.inference_mode(False), torch.no_grad():
                self._value = [make()]
            self._sources, self._marks = list(sources), marks
        return self._value[0]

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def _mark(source: Tensor | int) -> tuple[int, ...] | int | None:
    """Tells a source from others and from what it was; None if that is unknown."""
    if not isinstance(source, Tensor):
        return source
    versions = stamp(source)
    return None if versions is None else (id(source), *versions)
