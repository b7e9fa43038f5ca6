"""What stands in a report, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import cost, ladder, search, tables
from benchmarks.report.analysis import Analysis, Settings, analyse
from benchmarks.report.cells import Section, load
from benchmarks.report.expectations import expectations
from benchmarks.report.ladder import Ladder
from benchmarks.report.names import title_of
from benchmarks.report.plan import load_plan
from benchmarks.report.prose import load_notes
from benchmarks.report.search import load_searches
from benchmarks.report.summary import overview
from benchmarks.report.tables import Table

SUMMARY = (
    'Metrics of full rankings, one held-out item a user: R is recall (hit rate), N '
    'is NDCG. The protocol says what is read (history) and what is not ranked '
    '(mask). The harness lets validation choose the epoch of a model, or the weights '
    'of an ensemble, unless it trains on the validation items, too, and reads the test '
    'items at the end, for each protocol. Earlier looks at them are a matter of the '
    'notes; a table of searches names the recipes that were searched. Intervals and '
    'tests are over users, given the trained models: they do not tell how much another '
    'seed would change, which the deviations over seeds do. A target that ties with '
    'other items has the mean of their ranks. Printed numbers are those '
    'of others, and are marked as such.'
)
SEARCHED = 'Searches of settings: validation chooses, and no test item is read.'
SEARCH = 'search'  # folder of what benchmarks.search has left


@dataclass
class Part:
    """One table of experiments on one data set."""

    title: str
    summary: str
    notes: str
    analysis: Analysis
    ladder: Ladder | None  # of what was read on validation alone
    rungs: list[Table]
    metrics: list[Table]
    points: list[Table]
    tests: list[Table]
    slices: list[Table]
    expectations: list[Table]
    costs: list[Table]
    records: list[Table]  # search, provenance
    printed: list[Table]
    remarks: list[str]

    @property
    def tables(self) -> list[Table]:
        """All but what stands beside the numbers of others."""
        return [
            *self.rungs,
            *self.metrics,
            *self.points,
            *self.tests,
            *self.slices,
            *self.costs,
            *self.records,
        ]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Cells that did not come to their end."""
        return self.analysis.section.failed


@dataclass
class Document:
    """A report."""

    summary: str
    overview: list[Table]
    parts: list[Part]
    searches: list[Table]
    search_notes: str
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
    if section.is_ladder:
        words.append('validation alone was read')
    if section.failed:
        words.append(f'{_count(len(section.failed), "cell")} failed')
    return ', '.join(words) + '.'


def _searches(section: Section) -> Table | None:
    """The searches that have written the recipes of a section, if there are some."""
    recipes = [
        Path(result.get('recipe') or '')
        for result in section.results
        if result.trained_parameters and not result.get('config', 'ensemble')
    ]
    names = {path.stem for path in recipes if path.parent.parent.name == 'benchmarks'}
    others = {path.stem for path in recipes if path.name} - names
    every = [
        one
        for one in load_searches(section.folder.parent / SEARCH)
        if one.name in names
    ]
    own = [one for one in every if one.dataset == section.dataset]
    borrowed = {one.name for one in every} - {one.name for one in own}
    return search.budgets(own, sorted(borrowed), sorted(others)) if own else None


def _part(
    section: Section,
    notes: str,
    baselines: Sequence[str] | None,
    settings: Settings,
) -> Part:
    if baselines is None:
        base = load_plan(section.table).base
        there = any(model.key == base for model in section.everything)
        baselines = [base if base and there else 'lightgcn']
    analysis = analyse(section, baselines, settings)
    rungs = Ladder.of(section, baselines) if section.is_ladder else None
    compared = rungs.models if rungs else section.everything[::-1]
    records = []
    if searches := _searches(section):
        records.append(searches)
    if section.results:
        records.append(tables.provenance(analysis))
    remarks = []
    if analysis.tests and not analysis.slices:
        remarks.append(
            'No slices: neither `users/` beside the results nor `HELLM_DATA` was there.'
        )
    printed = []
    if section.has_printed_data and not rungs:
        printed = tables.printed(section.dataset)
    title = section.dataset.capitalize()
    if section.table != section.dataset:
        title += f', {title_of(section.table)}'
    return Part(
        title,
        _summary(analysis),
        notes,
        analysis,
        rungs,
        [ladder.table(rungs)] if rungs else [],
        [t for p in analysis.tables for t in tables.metrics(analysis, p, settings)],
        [t for p in analysis.tables for t in tables.points(analysis, p, settings)],
        [tables.tests(analysis, one, settings) for one in analysis.tests],
        [tables.slices(part, section.models) for part in analysis.slices],
        expectations(analysis),
        [cost.training(compared)] if compared else [],
        records,
        printed,
        remarks,
    )


def build(
    folders: Sequence[Path],
    baselines: Sequence[str] | None = None,
    settings: Settings | None = None,
) -> Document:
    """Reads folders of results and computes all that is reported of them.

    Args:
        folders: Folders of results; one that is called 'search' is of searches.
        baselines: Cells that all others are compared with, besides the best on
            validation; if :obj:`None`, the base of a table's file, or LightGCN where it
            is there. None that was trained on the validation items, too.
        settings: How much is resampled.

    Raises:
        ValueError: If a folder holds no results, a result cannot be used, or there is
            no such baseline.
    """
    settings = settings or Settings()
    searches = [f for f in folders if f.resolve().name == SEARCH]
    loaded = [load(folder) for folder in folders if folder not in searches]
    sections = [section for own in loaded for section in own]
    known = {
        model.key
        for section in sections
        for model in section.shown
        if not model.saw_validation
    }
    if missing := set(baselines or ()) - known:
        raise ValueError(
            f"'baseline' needs to be one of {sorted(known)} (got {sorted(missing)})"
        )
    first = [own[0] for own in loaded]  # has the notes of its folder
    parts = [
        _part(
            section,
            load_notes(section.folder) if section in first else '',
            baselines,
            settings,
        )
        for section in sections
    ]
    found = [one for folder in searches for one in load_searches(folder)]
    if searches and not found:
        raise ValueError(
            f"'folder' needs results of 'benchmarks.search' (got '{searches[0]}')"
        )
    return Document(
        SUMMARY if parts else SEARCHED,
        overview([part.analysis for part in parts]),
        parts,
        [search.budgets(found), *map(search.trials, found)] if found else [],
        '\n\n'.join(filter(None, map(load_notes, searches))),
        settings,
    )
