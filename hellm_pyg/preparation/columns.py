"""Which columns of a shop's tables are meant: as given, or where there is no doubt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hellm_pyg.datasets.guess import (
    fitting,
    guess_columns,
    guess_item_columns,
    perhaps_times,
)
from hellm_pyg.datasets.item_text import check_template, template_of
from hellm_pyg.datasets.tables import SEQUENCES, Source, column_names, ending
from hellm_pyg.keys import in_words

WHAT = {
    'user': 'users',
    'item': 'items',
    'time': 'times',
    'rating': 'ratings',
    'item_id': "items' ids",
    'title': 'titles',
}


@dataclass(frozen=True)
class Columns:
    """The columns that are read, :obj:`None` for those that are not.

    Args:
        user: Of the user ids.
        item: Of the item ids.
        time: Of the times; without it the order of the rows counts.
        rating: Of the ratings.
        item_id: Of the ids in the item table.
        title: Of the titles in the item table.
        text: Template of the texts, ``''`` for none.
        notes: What was guessed, a sentence each.
    """

    user: str | None
    item: str | None
    time: str | None
    rating: str | None
    item_id: str
    title: str | None
    text: str
    notes: tuple[str, ...]


def settle_columns(
    interactions: Source,
    items: Source | None,
    given: Mapping[str, str | None],
    need_rating: bool = False,
) -> Columns:
    """Completes the columns that were given by those whose names leave no doubt.

    Args:
        interactions: The table of interactions, or sequence text.
        items: The table of items.
        given: Role to column, :obj:`None` to guess, ``''`` for none of them; and
            ``'text'``, the template.
        need_rating: Whether the ratings are to be read.

    Raises:
        ValueError: If a column is needed and not to be guessed; names those that
            there are.
    """
    if given['rating'] and not need_rating:
        raise ValueError(
            f"'rating' is read for the smallest rating that counts alone (got "
            f"{given['rating']!r}, min_rating=None): give 'min_rating', too, or neither"
        )
    notes: list[str] = []
    roles: dict[str, str | None] = dict.fromkeys(('user', 'item', 'time', 'rating'))
    sequences = isinstance(interactions, Path) and ending(interactions) == SEQUENCES
    if sequences:
        roles |= {role: given[role] or None for role in roles}
    else:
        names = column_names(interactions)
        guess = guess_columns(names)
        wanted = {'user': True, 'item': True, 'time': False}
        wanted |= {'rating': True} if need_rating else {}
        for role, needed in wanted.items():
            roles[role] = _settle(
                role, given[role], guess.get(role), names, interactions, needed, notes
            )
        if roles['time'] is None:
            notes.append(f"'{_name(interactions)}': the order of the rows counts")
    item_id, title, text = 'item_id', None, given['text'] or ''
    if items is not None:
        names = column_names(items)
        guess = guess_item_columns(names, roles['item'])
        found = [
            _settle(role, given[role], guess.get(role), names, items, needed, notes)
            for role, needed in (('item_id', True), ('title', False))
        ]
        item_id, title = found[0] or item_id, found[1]
        if given['text'] is None and title is not None:
            text = template_of(title)
            notes.append(f"texts are made of '{text}'")
        elif given['text'] is None:
            notes.append(
                f"'{_name(items)}': no column is known as a title: no texts are "
                f"encoded, unless 'title' or 'text' name what to read"
            )
        if text:
            _check_text(text, names, title)
    elif text or given['title']:
        name = 'text' if text else 'title'
        raise ValueError(
            f"'{name}' reads columns of a table of items: give it as 'items' (got "
            f'{given[name]!r}, items=None)'
        )
    return Columns(
        roles['user'],
        roles['item'],
        roles['time'],
        roles['rating'],
        item_id,
        title,
        text,
        tuple(notes),
    )


def _check_text(text: str, names: list[str], title: str | None) -> None:
    titles = [] if title is None else ['title']
    with in_words({'template': 'text'}):
        check_template(text, list(dict.fromkeys([*names, *titles])))


def _name(source: Source) -> str:
    return source.name if isinstance(source, Path) else str(source)


def _settle(
    role: str,
    given: str | None,
    guess: str | None,
    names: list[str],
    source: Source,
    needed: bool,
    notes: list[str],
) -> str | None:
    if given == '' and needed:
        raise ValueError(
            f"'{role}' needs the column of the {WHAT[role]} in '{source}' (got '', its "
            f'columns: {", ".join(map(repr, names))})'
        )
    if given is not None:
        return given or None
    if guess is not None:
        if guess != role:
            notes.append(
                f"'{_name(source)}': column '{guess}' is read as the {WHAT[role]}"
            )
        return guess
    fits = fitting(names, role)
    if role == 'time' and not fits and (perhaps := perhaps_times(names)):
        raise ValueError(
            f"'time' needs the column of the times in '{source}', which may be "
            f"{' or '.join(map(repr, perhaps))}, or '' if the order of the rows counts "
            f'(its columns: {", ".join(map(repr, names))})'
        )
    if not fits and not needed:
        return None
    doubt = 'none of them is known by its name'
    if fits:
        doubt = f'it could be {" or ".join(map(repr, fits))}'
    raise ValueError(
        f"'{role}' needs the column of the {WHAT[role]} in '{source}', and {doubt} "
        f'(its columns: {", ".join(map(repr, names))})'
    )
