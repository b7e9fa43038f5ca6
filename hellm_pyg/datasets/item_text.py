"""Texts about items: cleaned of HTML, put together by a template."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from string import Formatter

# Longer texts are cut; encoders read a few hundred words.
MAX_TEXT = 32_768
# What is never closed goes on to the end, as in a browser: no text is read twice.
HIDDEN = re.compile(
    r'<(script|style)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)', re.DOTALL | re.I
)
TAG = re.compile(r'</?[a-zA-Z][^<>]*>')


def clean(text: str) -> str:
    """Plain text on one line: without tags, entities and control characters."""
    text = html.unescape(text[:MAX_TEXT])
    text = TAG.sub(' ', HIDDEN.sub(' ', text))
    text = ''.join(c if c.isprintable() else ' ' for c in text)
    return ' '.join(text.split())


def check_template(template: str, names: Collection[str]) -> None:
    """Refuses a template with anything but names in its braces.

    Args:
        template: Such as ``'{title}. {brand}'``.
        names: The names that exist.

    Raises:
        ValueError: Names the field and the nearest known name.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"'template' needs names in braces, '{{title}}' (got {template!r}: {error})"
        ) from None
    fields = [part[1:] for part in parts if part[1] is not None]
    for field, form, conversion in fields:
        if field not in names or form or conversion:
            nearest = get_close_matches(str(field), names, 1, cutoff=0)
            raise ValueError(
                f"'template' may name {', '.join(names)}, each as '{{name}}' (got "
                f'{field!r} in {template!r}); did you mean {nearest}?'
            )
    if not fields:
        raise ValueError(f"'template' needs a name in braces (got {template!r})")


def fields(template: str) -> list[str]:
    """The names that a template reads, each once."""
    names = (name for _, name, *_ in Formatter().parse(template) if name is not None)
    return list(dict.fromkeys(names))


def template_of(column: str) -> str:
    """The template of one column, ``'{title}'`` if its name has signs of a format."""
    template = f'{{{column}}}'
    try:
        check_template(template, [column])
    except ValueError:
        return '{title}'
    return template


def fill(template: str, values: Mapping[str, str]) -> str:
    """The text of one item; empty if all its values are."""
    # By hand, for a name may have dots, which a format would take as attributes.
    parts = [(words, name) for words, name, *_ in Formatter().parse(template)]
    if not any(values[name] for _, name in parts if name is not None):
        return ''
    text = [words + ('' if name is None else values[name]) for words, name in parts]
    return ' '.join(''.join(text).split())
