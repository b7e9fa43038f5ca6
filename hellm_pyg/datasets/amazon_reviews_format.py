"""The raw files of the Amazon reviews of 2014, 2018 and 2023, line by line."""

from __future__ import annotations

import ast
import gzip
import json
import re
import time as clock
import warnings
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from tqdm import tqdm

from hellm_pyg.datasets.amazon_releases import Release
from hellm_pyg.datasets.columns import MAX_ID, MISSING
from hellm_pyg.datasets.times import DAY, FIRST, LAST, PER_SECOND

# A longer line is no record; it is passed over without being held in memory. A
# literal takes 500 times its size while it is read.
MAX_LINE = 1 << 22
MAX_LITERAL = 1 << 19
MAX_SHOWN = 100
LITERAL_CODE = re.compile(rb"\{'asin': '([0-9A-Za-z]+)'")


@dataclass
class LineReport:
    """What was found in a file.

    Args:
        name: Name of the file.
        lines: Number of lines read.
        bad: Number of lines that hold no record.
        first_bad: Line number and reason of the first of them.
        repeated: Number of records of a product that came before.
    """

    name: str
    lines: int = 0
    bad: int = 0
    first_bad: list[tuple[int, str]] = field(default_factory=list)
    repeated: int = 0

    def refuse(self, reason: str) -> None:
        """Counts the last line as bad."""
        self.bad += 1
        if len(self.first_bad) < MAX_SHOWN:
            self.first_bad.append((self.lines, reason))


@dataclass(frozen=True)
class Product:
    """Metadata of a product, as written in the file; empty where missing.

    Args:
        title: The title.
        brand: The brand.
        category: First category path, from the root on.
        description: The description.
        image_url: Address of the main image.
    """

    title: str
    brand: str
    category: tuple[str, ...]
    description: str
    image_url: str


def read_reviews(
    path: Path, release: Release, report: LineReport
) -> Iterator[tuple[str, str, int]]:
    """User, product and time of each review, in the order of the file.

    A line is bad if it lacks one of them, or has a time before 1970, in the future
    or in another unit.

    Args:
        path: The file, with or without ``.gz``.
        release: Its release.
        report: Takes the count of lines and the bad ones.

    Raises:
        ValueError: If the file is damaged, or ends in the middle.
    """
    per_second = PER_SECOND[release.unit]
    latest = (int(clock.time()) + DAY) * per_second
    for line in _lines(path, report):
        record = _parse(line, False, report)
        if record is None:
            continue
        user, item, time = (
            record.get(name) for name in (release.user, release.item, release.time)
        )
        if not _is_code(user):
            report.refuse(f"no '{release.user}'")
        elif not _is_code(item):
            report.refuse(f"no '{release.item}'")
        elif type(time) is not int:
            report.refuse(f"no whole number as '{release.time}'")
        elif time < per_second:
            report.refuse(f"not after 1970: '{release.time}'")
        elif time > latest:
            report.refuse(f"in the future: '{release.time}'")
        elif release.unit != 's' and FIRST <= time <= LAST:
            report.refuse(f"seconds, not milliseconds: '{release.time}'")
        else:
            yield user, item, time


def read_products(
    path: Path, release: Release, wanted: Collection[str], report: LineReport
) -> Iterator[tuple[str, Product]]:
    """Code and metadata of the wanted products; of repeated ones, the first.

    Lines of other products that can be told by their beginning are not parsed.

    Args:
        path: The file, with or without ``.gz``.
        release: Its release.
        wanted: Codes of the products.
        report: Takes the count of lines and the bad ones.

    Raises:
        ValueError: If the file is damaged, or ends in the middle.
    """
    seen: set[str] = set()
    for line in _lines(path, report):
        if release.literals:
            code = LITERAL_CODE.match(line)
            if code and code[1].decode() not in wanted:
                continue
        record = _parse(line, release.literals, report)
        if record is None:
            continue
        item = record.get(release.item)
        if not _is_code(item):
            report.refuse(f"no '{release.item}'")
        elif item in seen:
            report.repeated += 1
        elif item in wanted:
            seen.add(item)
            yield item, _product(record)


def _lines(path: Path, report: LineReport) -> Iterator[bytes]:
    """Lines in constant memory; a longer one than any record is counted as bad."""
    size = path.stat().st_size
    try:
        with (
            path.open('rb') as raw,
            tqdm(
                desc=f'Reading {path.name}',
                total=size,
                unit='B',
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            file = gzip.GzipFile(fileobj=raw) if path.suffix == '.gz' else raw
            while line := file.readline(MAX_LINE + 1):
                report.lines += 1
                bar.update(raw.tell() - bar.n)
                if len(line) <= MAX_LINE:
                    if line.strip():
                        yield line
                    continue
                report.refuse(f'longer than {MAX_LINE} bytes')
                while line and not line.endswith(b'\n'):
                    line = file.readline(MAX_LINE)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"'{path}' is damaged or cut off after line {report.lines} ({error}); "
            f'delete it, and it is downloaded again'
        ) from error


def _parse(line: bytes, literal: bool, report: LineReport) -> dict[str, Any] | None:
    if literal and len(line) > MAX_LITERAL:
        report.refuse(f'longer than {MAX_LITERAL} bytes')
        return None
    try:
        text = line.decode('utf-8')
        if literal:
            with warnings.catch_warnings():  # of backslashes that escape nothing
                warnings.simplefilter('ignore')
                record = ast.literal_eval(text.strip())
        else:
            record = json.loads(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        report.refuse(f'{type(error).__name__}: {str(error)[:100]}')
        return None
    if not isinstance(record, dict):
        report.refuse(f'no record but {type(record).__name__}')
        return None
    return record


def _product(record: dict[str, Any]) -> Product:
    details = record.get('details')
    brand = details.get('Brand') if isinstance(details, dict) else None
    return Product(
        title=_text(record.get('title')),
        brand=_text(record.get('brand') or brand or record.get('store')),
        category=_category(record),
        description=_text(record.get('description')),
        # Without halves of surrogate pairs, which JSON can hold and files cannot.
        image_url=_image_url(record).encode('utf-8', 'ignore').decode(),
    )


def _is_code(value: Any) -> TypeGuard[str]:
    return (
        isinstance(value, str)
        and value.isprintable()
        and len(value) <= MAX_ID
        and value.strip().lower() not in MISSING
    )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ' '.join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ''


def _category(record: dict[str, Any]) -> tuple[str, ...]:
    for name in ('categories', 'category'):
        path = record.get(name)
        if isinstance(path, list) and path:
            path = path[0] if isinstance(path[0], list) else path
            return tuple(level for level in path if isinstance(level, str))
    return ()


def _image_url(record: dict[str, Any]) -> str:
    for name in ('imUrl', 'imageURLHighRes', 'imageURL', 'image'):
        value = record.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str) and value.strip():
            return value.strip()
    images = record.get('images')
    images = (
        [i for i in images if isinstance(i, dict)] if isinstance(images, list) else []
    )
    images.sort(key=lambda image: image.get('variant') != 'MAIN')
    for image in images:
        for name in ('large', 'hi_res', 'thumb'):
            if isinstance(image.get(name), str) and image[name].strip():
                return image[name].strip()
    return ''
