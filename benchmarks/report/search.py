"""Reads what ``benchmarks.search`` has left beside the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Search(NamedTuple):
    """The budget of one recipe and what it led to."""

    recipe: str
    trials: int
    minutes: float
    states: list[str]
    values: dict[str, Any]
    best: float


def load_searches(folder: Path, dataset: str) -> list[Search]:
    """The searches on a data set, also those that began at another's winner.

    The folder may not be there.
    """
    found = []
    for path in sorted(folder.glob('*.json')):
        content = json.loads(path.read_text())
        for search in (content, *content.get('carried', {}).values()):
            if search['dataset'] == dataset:
                found.append(
                    Search(
                        search['recipe'],
                        search['trials'],
                        search['minutes'],
                        [run['state'] for run in search['runs']],
                        search['best']['values'],
                        search['best']['N@10'],
                    )
                )
    return found
