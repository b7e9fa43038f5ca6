"""What prepared data do not say themselves: where they are from, and how."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hellm_pyg.datasets.tables import printable

# Entries of a data set's report that are arguments.
SETTINGS = ('columns', 'min_count', 'min_length', 'min_rating')


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a data card tells beside the data; every value is plain JSON.

    Args:
        source: Where the data are from, in a line.
        files: :func:`describe_file` of every file that was read.
        settings: The arguments that shaped the data, those guessed included.
        dropped: What was left out, reason to number, in order.
        template: The template of the items' texts.
        encoders: Modality to what its features were made by and with.
        split: How targets were held out; told from the data if empty.
        images: Outcome of fetching or reading images to number of items.
        notes: Further lines.

    Raises:
        ValueError: If a value is not plain JSON.
    """

    source: str = ''
    files: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    template: str = ''
    encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    split: str = ''
    images: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"'{entry.name}' needs plain JSON values: {error} (got {value!r})"
                ) from None


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name, size and SHA-256 of a file, wherever it lies."""
    path = Path(path)
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return {
        'name': printable(path.name),
        'bytes': path.stat().st_size,
        'sha256': digest,
    }


def table_provenance(report: Mapping[str, Any], **known: Any) -> Provenance:
    """The provenance of a data set that was read from tables.

    Args:
        report: :attr:`~hellm_pyg.datasets.InteractionFiles.report`.
        **known: Further arguments of :class:`Provenance`, or other values for them.
    """
    read, unit = report['read'], report['time']
    notes = [
        f'Read {read["interactions"]:,} interactions of {read["users"]:,} users with '
        f'{read["items"]:,} items.',
        f'Times were read as {unit["read_as"]}.',
        *(
            f'The column of {role} was guessed: {report["columns"][role]}.'
            for role in report['guessed']
        ),
    ]
    dropped = {f'interactions: {why}': n for why, n in report['dropped'].items()}
    table = report['item_table']
    if table is not None:
        unused, absent = (
            table['rows without interactions'],
            table['items without a row'],
        )
        if unused:
            dropped['rows of the item table: no interactions'] = unused
        if absent:
            notes.append(f'{absent:,} items have no row in the item table.')
    arguments = {
        'files': [_named(file) for file in report['files']],
        'settings': {name: report[name] for name in SETTINGS},
        'dropped': dropped,
        'notes': notes,
    }
    return Provenance(**(arguments | known))


def _named(file: Mapping[str, Any]) -> dict[str, Any]:
    """A file of a report as :func:`describe_file` has it, tables by their role."""
    name = file['file'] or f'{file["argument"]} (a table in memory)'
    return {'name': name, 'sha256': file['sha256']}
