"""Original ids to internal ids and back."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from hellm_pyg.checkpoint import atomic

Id = int | str


def spelled(text: str) -> str:
    """An id as it is read from files: no blanks around it, Unicode's form NFC."""
    return unicodedata.normalize('NFC', text.strip())


class UnknownIdError(ValueError):
    """An id that the catalogue or the user list does not hold."""


class IdMap:
    r"""The ids of the input files, in the order of the internal ids.

    Internal ids count from 0: :obj:`users[u]` is the original id of user
    :obj:`u`. Integers and strings keep their type, also over :meth:`save`
    and :meth:`load`. A look-up first takes an id as it is given; if it is
    unknown, its other spelling is tried (:obj:`'42'` for :obj:`42`), so ids
    typed in a shell find integers.

    Args:
        users: Original id of each user, int or str, of length :math:`U`.
        items: Original id of each item, int or str, of length :math:`I`.
        titles: Title of each item, of length :math:`I`.

    Raises:
        ValueError: If an id is repeated or neither int nor str, or if
            :obj:`titles` has another length than :obj:`items`.
    """

    def __init__(
        self,
        users: Sequence[Id],
        items: Sequence[Id],
        titles: Sequence[str] | None = None,
    ) -> None:
        self.users = _checked(users, 'users')
        self.items = _checked(items, 'items')
        self.titles = None if titles is None else [str(title) for title in titles]
        if self.titles is not None and len(self.titles) != len(self.items):
            raise ValueError(
                f"'titles' needs one entry an item (got {len(self.titles)} titles "
                f'for {len(self.items)} items)'
            )
        self._user_index = _positions(self.users, 'users')
        self._item_index = _positions(self.items, 'items')

    @property
    def num_users(self) -> int:
        """Number of users :math:`U`."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """Number of items :math:`I`."""
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids in their order; titles have no part in it."""
        text = json.dumps([self.users, self.items], separators=(',', ':'))
        return hashlib.sha256(text.encode()).hexdigest()

    def user_index(self, ids: Iterable[Any] | Tensor) -> Tensor:
        r"""Internal indices of original user ids.

        Args:
            ids: Original ids of length :math:`N`.

        Returns:
            int64 of shape :math:`[N]`.

        Raises:
            UnknownIdError: Names the id and the nearest known ones.
        """
        return _look_up(self._user_index, ids, 'user')

    def item_index(self, ids: Iterable[Any] | Tensor) -> Tensor:
        r"""Internal indices of original item ids; see :meth:`user_index`."""
        return _look_up(self._item_index, ids, 'item')

    def known_items(self, ids: Iterable[Any] | Tensor) -> list[Any]:
        """The item ids that are known, in their order: a history as far as it counts.

        Args:
            ids: Ids as they are given to :meth:`item_index`.
        """
        known = self._item_index
        return [value for value in _plain(ids) if _index_of(known, value) is not None]

    @overload
    def user_id(self, index: int) -> Id: ...

    @overload
    def user_id(self, index: Sequence[int] | Tensor) -> list[Id]: ...

    def user_id(self, index: int | Sequence[int] | Tensor) -> Id | list[Id]:
        """Original id of an internal user index, or the list of several."""
        return _original(self.users, index, 'user')

    @overload
    def item_id(self, index: int) -> Id: ...

    @overload
    def item_id(self, index: Sequence[int] | Tensor) -> list[Id]: ...

    def item_id(self, index: int | Sequence[int] | Tensor) -> Id | list[Id]:
        """Original id of an internal item index, or the list of several."""
        return _original(self.items, index, 'item')

    def with_items(
        self, items: Sequence[Id], titles: Sequence[str] | None = None
    ) -> IdMap:
        r"""The map with further items behind its own.

        Args:
            items: Their original ids, of length :math:`N`.
            titles: Their titles, of length :math:`N`; empty if :obj:`None`.

        Raises:
            ValueError: If an item is known, or as of the class.
        """
        known = self.known_items(items)
        if known:
            raise ValueError(
                f"'items' needs ids that are not known yet (got {known[0]!r}, which "
                f'is): leave it out'
            )
        joined = None
        if self.titles is not None or titles is not None:
            own = self.titles or [''] * self.num_items
            joined = [*own, *([''] * len(items) if titles is None else titles)]
        return IdMap(self.users, [*self.items, *items], joined)

    def save(self, path: str | Path) -> None:
        """Writes the map as JSON; the file is replaced whole or not at all."""
        content = {'users': self.users, 'items': self.items, 'titles': self.titles}
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(content), encoding='ascii')

    @classmethod
    def load(cls, path: str | Path) -> IdMap:
        """Reads a map that :meth:`save` wrote.

        Raises:
            ValueError: If the file is missing, damaged or no id map.
        """
        try:
            content = json.loads(Path(path).read_text(encoding='utf-8'))
            return cls(*(content[name] for name in ('users', 'items', 'titles')))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"'{path}' is not a readable id map ({error!r})"
            ) from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdMap):
            return NotImplemented
        return (self.users, self.items, self.titles) == (
            other.users,
            other.items,
            other.titles,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.num_users}, {self.num_items})'


def _plain(values: Iterable[Any] | Tensor) -> list[Any]:
    if isinstance(values, (str, bytes, int)):
        raise ValueError(
            f'ids come as a list, one id as a list of one (got {values!r})'
        )
    if isinstance(values, (Tensor, np.ndarray)):
        return values.tolist()
    return [v.item() if isinstance(v, (np.generic, Tensor)) else v for v in values]


def _checked(ids: Iterable[Any] | Tensor, name: str) -> list[Id]:
    plain = _plain(ids)
    for position, value in enumerate(plain):
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError(
                f"'{name}' needs ids that are int or str (got {value!r} at "
                f'position {position})'
            )
    return plain


def _positions(ids: list[Id], name: str) -> dict[Id, int]:
    positions = {value: index for index, value in enumerate(ids)}
    if len(positions) < len(ids):
        repeated = next(v for i, v in enumerate(ids) if positions[v] != i)
        raise ValueError(f"'{name}' needs unique ids (got {repeated!r} twice)")
    return positions


def _look_up(known: dict[Id, int], ids: Iterable[Any] | Tensor, kind: str) -> Tensor:
    out = []
    for value in _plain(ids):
        index = _index_of(known, value)
        if index is None:
            raise UnknownIdError(_unknown(value, known, kind))
        out.append(index)
    return torch.tensor(out, dtype=torch.long)


def _index_of(known: dict[Id, int], value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    spellings = [value] if isinstance(value, int) else [value, spelled(value)]
    for spelling in spellings:
        for candidate in (spelling, _other_spelling(spelling)):
            if candidate in known:
                return known[candidate]
    return None


def _original(
    ids: list[Id], index: int | Sequence[int] | Tensor, kind: str
) -> Id | list[Id]:
    plain = index.tolist() if isinstance(index, Tensor) else index
    if isinstance(plain, (int, np.integer)):
        if not 0 <= plain < len(ids):
            raise ValueError(
                f"'index' needs to lie in [0, {len(ids)}) for a {kind} (got {plain})"
            )
        return ids[plain]
    return [_original(ids, position, kind) for position in plain]  # type: ignore[misc]


def _other_spelling(value: Id) -> Id:
    """``'42'`` for 42 and 42 for ``'42'``; other ids have one spelling."""
    if isinstance(value, int):
        return str(value)
    plain = value.removeprefix('-').isdecimal() and len(value) < 20
    return int(value) if plain and str(int(value)) == value else value


def _unknown(value: Any, known: dict[Id, int], kind: str) -> str:
    nearest = _nearest(value, known)
    hint = f'; nearest known: {", ".join(map(repr, nearest))}' if nearest else ''
    return f'unknown {kind} id {value!r} among {len(known)} {kind}s{hint}'


def _nearest(value: Any, known: dict[Id, int], count: int = 3) -> list[Id]:
    number = _other_spelling(value) if isinstance(value, str) else value
    integers: list[Id] = [k for k in known if isinstance(k, int)]
    if integers and isinstance(number, (int, float)) and number == number:
        return sorted(integers, key=lambda k: abs(int(k) - number))[:count]
    text = str(value)
    # Close matches share most letters: comparing lengths first keeps the search
    # over a large catalogue short.
    names = {str(k): k for k in known if abs(len(str(k)) - len(text)) <= 2}
    return [names[name] for name in get_close_matches(text, list(names)[:50000], count)]
