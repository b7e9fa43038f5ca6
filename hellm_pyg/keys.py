"""Errors in the words of a recipe rather than of a constructor."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def in_words_of(section: type, prefix: str, **other: str) -> Iterator[None]:
    """Lets a :obj:`ValueError` name the key of the recipe that it is about.

    Who wrote a recipe knows an argument by the section that it stands in: ``'knn'``
    is ``'data.knn'`` there. See :func:`reworded`.

    Args:
        section: Dataclass or class whose arguments are keys of a recipe.
        prefix: The section of the recipe that holds them.
        other: Further arguments, or such with another key, and their keys.
    """
    keys = {name: f'{prefix}.{name}' for name in inspect.signature(section).parameters}
    with in_words(keys | other):
        yield


@contextmanager
def in_words(keys: Mapping[str, str]) -> Iterator[None]:
    """Lets a :obj:`ValueError` name keys for arguments, see :func:`reworded`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(reworded(str(error), keys)) from error


def reworded(text: str, keys: Mapping[str, str]) -> str:
    """An error in the words of who has typed keys, or options, for arguments.

    Errors begin with the names of the arguments that they are about, in quotes, and
    some propose a value: ``bad_rows='drop'`` is ``data.bad_rows=drop`` in a recipe
    and ``--bad-rows=drop`` on the command line.

    Args:
        text: The error.
        keys: Argument to key.
    """

    def name(match: re.Match[str]) -> str:
        return f"'{keys.get(match[1], match[1])}'"

    def value(match: re.Match[str]) -> str:
        return f'{keys[match[1]]}={match[2]}' if match[1] in keys else match[0]

    about = r"^'\w+'((,| and) '\w+')*"
    text = re.sub(about, lambda names: re.sub(r"'(\w+)'", name, names[0]), text)
    return re.sub(r"(?<![\w.])(\w+)='(\S+?)'", value, text)
