"""One text an item, from the columns of a catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hellm_pyg.datasets.item_text import check_template, clean, fields, fill

# The paper's text: title, brand, category path and description.
FIELDS = ('title', 'brand', 'category', 'description')
LEVELS = ' > '


def paper_template(names: Sequence[str]) -> str:
    """The template of the paper, as far as a catalogue has its columns.

    Raises:
        ValueError: If it has none of them.
    """
    present = [name for name in FIELDS if name in names]
    if not present:
        raise ValueError(
            f"'template' needs to be given, such as '{{{next(iter(names), 'name')}}}', "
            f'where the items have none of the columns {", ".join(FIELDS)} (got '
            f'{", ".join(names) or "no column"})'
        )
    return ' '.join(f'{{{name}}}' for name in present)


def item_texts(columns: Mapping[str, Sequence[Any]], template: str) -> list[str]:
    r"""Fills a template for every item with text that is cleaned of HTML.

    Args:
        columns: Name to values, each of length :math:`I`. Lists are joined by
            blanks, of several category paths the first; so are the levels of
            a path that is written ``'A > B'``.
        template: Such as ``'{title}. {brand}'``.

    Returns:
        The texts; ``''`` where all values are missing.

    Raises:
        ValueError: If the template names anything but a column.
    """
    check_template(template, list(columns))
    plain = {
        name: [_plain(value) for value in columns[name]] for name in fields(template)
    }
    num_items = len(next(iter(plain.values())))
    return [
        fill(template, {name: values[row] for name, values in plain.items()})
        for row in range(num_items)
    ]


def _plain(value: Any) -> str:
    if value is None or value != value:
        return ''
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (list, tuple)):
            return _plain(value[0])
        return ' '.join(filter(None, map(_plain, value)))
    return clean(str(value)).replace(LEVELS, ' ')
