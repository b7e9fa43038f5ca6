"""Reviews as arrays and products as columns."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hellm_pyg.datasets.amazon_releases import Release
from hellm_pyg.datasets.amazon_reviews_format import (
    LineReport,
    Product,
    read_reviews,
)
from hellm_pyg.datasets.item_text import clean, fill
from hellm_pyg.datasets.log import InteractionLog

logger = logging.getLogger(__name__)

# What a template may name; all but the title are columns of the item table.
FIELDS = ('title', 'brand', 'category', 'description')
TEMPLATE = '{title} {brand} {category} {description}'


def read_log(path: Path, release: Release, report: LineReport) -> InteractionLog:
    """The reviews of a file as arrays, in the order of the file.

    Raises:
        ValueError: If the file is damaged, or no line holds a review.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    columns = [array('q'), array('q'), array('q')]
    for user, item, time in read_reviews(path, release, report):
        columns[0].append(users.setdefault(user, len(users)))
        columns[1].append(items.setdefault(item, len(items)))
        columns[2].append(time)
    if not users:
        first = f', the first is {report.first_bad[0][1]}' if report.bad else ''
        raise ValueError(
            f"'{path}' has no review among its {report.lines} lines{first}; is it of "
            f'another release?'
        )
    warn_of_bad_lines(path, report)
    codes = [np.frombuffer(column, np.int64) for column in columns]
    return InteractionLog(
        sorted(users),
        sorted(items),
        _rank(users)[codes[0]],
        _rank(items)[codes[1]],
        codes[2].view(f'datetime64[{release.unit}]'),
    )


def _rank(codes: dict[str, int]) -> NDArray[np.int64]:
    """Position of each code in ascending order, by order of appearance."""
    rank = np.empty(len(codes), dtype=np.int64)
    rank[[codes[code] for code in sorted(codes)]] = np.arange(len(codes))
    return rank


def item_columns(
    items: Sequence[Any], found: dict[str, Product], template: str
) -> tuple[list[str], dict[str, list[Any]]]:
    """Titles and free columns of items; those not found have empty ones."""
    nothing = Product('', '', (), '', '')
    names = (*FIELDS[1:], 'text', 'image_url')
    titles: list[str] = []
    table: dict[str, list[Any]] = {name: [] for name in names}
    for item in items:
        product = found.get(item, nothing)
        levels = [clean(level) for level in product.category]
        values = {
            'title': clean(product.title),
            'brand': clean(product.brand),
            'category': ' '.join(levels),
            'description': clean(product.description),
        }
        titles.append(values['title'])
        text = fill(template, values)
        values |= {'category': ' > '.join(levels), 'text': text}
        values['image_url'] = product.image_url
        for name in names:
            table[name].append(values[name])
    return titles, table


def warn_of_bad_lines(path: Path, report: LineReport) -> None:
    """Logs how many lines of a file hold no record, and the first of them."""
    if report.bad:
        line, reason = report.first_bad[0]
        logger.warning(
            '%s: %d of %d lines hold no record and are passed over, the first of them '
            'line %d (%s)',
            path,
            report.bad,
            report.lines,
            line,
            reason,
        )


def check_found(path: Path, report: LineReport, wanted: int, found: int) -> None:
    """Logs what the metadata lack.

    Raises:
        ValueError: If they lack every product.
    """
    warn_of_bad_lines(path, report)
    if not found:
        raise ValueError(
            f"'{path}' has none of the {wanted} products of the reviews; is it of "
            f'another category or release?'
        )
    if found < wanted:
        logger.warning(
            '%s: %d of %d products are not in it and stay without text and image',
            path,
            wanted - found,
            wanted,
        )
