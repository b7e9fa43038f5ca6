"""Errors in the words of a recipe rather than of a constructor."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def in_words_of(section: type, prefix: str, **other: str) -> Iterator[None]:
    """Lets a :obj:`ValueError` name the key of the recipe that it is about.

    Errors begin with the name of an argument in quotes; who wrote a recipe knows it
    by the section that it stands in: ``'knn'`` is ``'data.knn'`` there.

    Args:
        section: Dataclass or class whose arguments are keys of a recipe.
        prefix: The section of the recipe that holds them.
        other: Further arguments, or such with another key, and their keys.
    """
    keys = {name: f'{prefix}.{name}' for name in inspect.signature(section).parameters}
    keys |= other
    try:
        yield
    except ValueError as error:
        text = re.sub(
            r"^'(\w+)'", lambda name: f"'{keys.get(name[1], name[1])}'", str(error)
        )
        raise ValueError(text) from error
