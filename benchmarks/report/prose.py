"""Reads ``NOTES.md``: paragraphs and lists with **bold** and `code`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """A paragraph, or the items of a list."""

    items: list[str]
    is_list: bool


def load_notes(folder: Path) -> str:
    """The notes of a results folder, empty if it has none."""
    path = folder / 'NOTES.md'
    return path.read_text().strip() if path.is_file() else ''


def blocks(markdown: str) -> list[Block]:
    """Paragraphs and lists; a line that goes on is joined to the one before."""
    found = []
    for part in re.split(r'\n\s*\n', markdown.strip()):
        lead, *items = re.split(r'^\s*[-*] ', part, flags=re.MULTILINE)
        if lead.strip():
            found.append(Block([' '.join(lead.split())], False))
        if items:
            found.append(Block([' '.join(item.split()) for item in items], True))
    return found


def spans(
    line: str,
    plain: Callable[[str], str],
    bold: Callable[[str], str],
    code: Callable[[str], str],
) -> str:
    """A line with its **bold** and `code` parts rendered."""
    parts = re.split(r'(\*\*.+?\*\*|`[^`]+`)', line)
    shown = []
    for part in parts:
        if part.startswith('**') and len(part) > 4:
            shown.append(bold(part[2:-2]))
        elif part.startswith('`') and len(part) > 2:
            shown.append(code(part[1:-1]))
        else:
            shown.append(plain(part))
    return ''.join(shown)
