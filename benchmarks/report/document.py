"""What stands in a report, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import tables
from benchmarks.report.analysis import Analysis, Settings, analyse
from benchmarks.report.cells import Section, load
from benchmarks.report.prose import load_notes
from benchmarks.report.search import load_searches
from benchmarks.report.tables import Table


@dataclass
class Part:
    """One table of experiments on one data set."""

    title: str
    summary: str
    notes: str
    analysis: Analysis
    metrics: list[Table]
    points: list[Table]
    tests: list[Table]
    slices: list[Table]
    records: list[Table]  # training, search, provenance
    printed: list[Table]
    remarks: list[str]

    @property
    def tables(self) -> list[Table]:
        """All but the printed ones."""
        return [*self.metrics, *self.points, *self.tests, *self.slices, *self.records]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Cells that did not come to their end."""
        return self.analysis.section.failed


@dataclass
class Document:
    """A report."""

    summary: str
    parts: list[Part]
    settings: Settings


def _count(number: int, noun: str) -> str:
    return f'{number:,} {noun}{"" if number == 1 else "s"}'


def _summary(analysis: Analysis) -> str:
    section = analysis.section
    seeds = sorted({result.seed for result in section.results})
    words = [
        _count(len(section.results), 'trained cell'),
        f'{"seed" if len(seeds) == 1 else "seeds"} {", ".join(map(str, seeds))}',
    ]
    if analysis.num_users:
        words.insert(0, f'{analysis.num_users:,} test users')
    if section.failed:
        words.append(f'{_count(len(section.failed), "cell")} failed')
    return ', '.join(words) + '.'


def _present(found: Iterable[Table | None]) -> list[Table]:
    return [table for table in found if table is not None]


def _part(section: Section, baselines: Sequence[str], settings: Settings) -> Part:
    analysis = analyse(section, baselines, settings)
    records = [tables.training(analysis)] if section.models else []
    found = load_searches(section.folder.parent / 'search', section.dataset)
    if found:
        records.append(tables.searches(found))
    if section.results:
        records.append(tables.provenance(analysis))
    remarks = []
    if analysis.tests and not analysis.slices:
        remarks.append(
            'No slices: neither `users/` beside the results nor `HELLM_DATA` was there.'
        )
    same = section.table == section.dataset
    title = section.dataset.capitalize() + ('' if same else f', {section.table}')
    return Part(
        title.replace('_', ' '),
        _summary(analysis),
        load_notes(section.folder),
        analysis,
        _present(tables.metrics(analysis, p, settings) for p in analysis.tables),
        _present(tables.points(analysis, p, settings) for p in analysis.tables),
        [tables.tests(analysis, one, settings) for one in analysis.tests],
        [tables.slices(part) for part in analysis.slices],
        records,
        tables.printed(section.dataset),
        remarks,
    )


def build(
    folders: Sequence[Path],
    baselines: Sequence[str] | None = None,
    settings: Settings | None = None,
) -> Document:
    """Reads folders of results and computes all that is reported of them.

    Args:
        folders: Folders of results.
        baselines: Cells that all others are compared with, besides the best on
            validation; LightGCN where it is there if :obj:`None`.
        settings: How much is resampled.

    Raises:
        ValueError: If a folder holds no results, a result cannot be used, or there is
            no such baseline.
    """
    settings = settings or Settings()
    sections = [section for folder in folders for section in load(folder)]
    known = {model.key for section in sections for model in section.models}
    if missing := set(baselines or ()) - known:
        raise ValueError(
            f"'baseline' needs to be one of {sorted(known)} (got {sorted(missing)})"
        )
    if baselines is None:
        baselines = ['lightgcn']
    parts = [_part(section, baselines, settings) for section in sections]
    return Document(
        'Metrics of full rankings, one held-out item a user: R is recall (hit rate), N '
        'is NDCG. The protocol says what is read (history) and what is not ranked '
        '(mask). Weights and settings were chosen on validation; test items were read '
        'once a protocol. Intervals and tests are over users, given the trained '
        'models: they do not tell how much another seed would change, which the '
        'deviations over seeds do. Printed numbers are those of others, and are '
        'marked as such.',
        parts,
        settings,
    )
