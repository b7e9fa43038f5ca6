"""From ranks to the numbers of a report: means, intervals, tests, slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report.cells import METRICS, Model, Section
from benchmarks.report.names import Printed, printed_for
from benchmarks.report.statistics import (
    Array,
    bootstrap,
    holm,
    paired_permutation,
    percentile_interval,
)
from benchmarks.report.users import COUNTS, LENGTHS, Users, load_users, slices

TESTED = ('R@10', 'N@10')
_TESTED = [METRICS.index(metric) for metric in TESTED]
_N10 = METRICS.index('N@10')


@dataclass(frozen=True)
class Settings:
    """How much is resampled."""

    resamples: int = 1000
    signs: int = 10_000
    level: float = 0.95
    seed: int = 0


@dataclass
class Row:
    """One model under one protocol; arrays are in the order of the metrics."""

    model: Model
    seeds: int
    mean: Array
    deviation: Array | None  # over seeds
    low: Array | None
    high: Array | None
    printed: Printed | None


@dataclass
class Comparison:
    """A model against the reference; arrays are over the tested metrics."""

    model: Model
    seeds: int  # those that both have; without any, all of each are compared
    difference: Array
    low: Array
    high: Array
    p: Array
    adjusted: Array


@dataclass
class Tests:
    """All models against one reference."""

    reference: Model
    why: str
    rows: list[Comparison]


@dataclass
class SliceTable:
    """N@10 of every model in every slice of the users."""

    title: str
    labels: list[str]
    sizes: list[int]
    models: list[Model]
    value: Array  # [models, slices]
    low: Array
    high: Array


UNTESTED = 'none, for validation alone was read'


@dataclass
class Analysis:
    """Everything that is shown of a section.

    Tests and slices are of the models, not of the points of a grid. What was trained on
    the validation items, too, is not tested and has slices of its own.
    """

    section: Section
    tables: dict[str, list[Row]]
    tests: list[Tests]
    slices: list[SliceTable]
    num_users: int | None

    @property
    def headline(self) -> str:
        """The first protocol, which the tests and slices are of.

        Where the test items were left alone, it says so.
        """
        return next(iter(self.tables), UNTESTED)


def _rows(section: Section, models: Sequence[Model], protocol: str) -> list[Row]:
    rows = []
    for model in models:
        metrics = model.metrics(protocol)
        if metrics is not None:
            several = len(metrics) > 1
            deviation = metrics.std(axis=0, ddof=1) if several else None
            printed = None
            if section.has_printed_data:
                printed = printed_for(model.key, section.dataset)
            mean = metrics.mean(axis=0)
            row = Row(model, len(metrics), mean, deviation, None, None, printed)
            rows.append(row)
    return rows


def _difference(model: Model, other: Model, protocol: str, seeds: set[int]) -> Array:
    """Of the tested metrics of each user, of shape ``[n, 2]``."""
    own, base = model.users(protocol, seeds), other.users(protocol, seeds)
    assert own is not None  # what has kept no ranks is not compared
    assert base is not None
    return own[:, _TESTED] - base[:, _TESTED]


def _compare(
    models: Sequence[Model], reference: Model, protocol: str, settings: Settings
) -> list[Comparison]:
    others = [model for model in models if model is not reference]
    shared = [m.seeds(protocol) & reference.seeds(protocol) for m in others]
    paired = np.concatenate(
        [
            _difference(model, reference, protocol, seeds)
            for model, seeds in zip(others, shared, strict=True)
        ],
        axis=1,
    )
    draws = bootstrap(paired, settings.resamples, settings.seed)
    p = paired_permutation(paired, settings.signs, settings.seed)
    columns = (
        paired.mean(axis=0),
        *percentile_interval(draws, settings.level),
        p,
        holm(p),
    )
    by_model = np.stack(columns).reshape(len(columns), len(others), -1)
    return [
        Comparison(model, len(seeds), *by_model[:, i])
        for i, (model, seeds) in enumerate(zip(others, shared, strict=True))
    ]


def _tested(section: Section) -> list[Model]:
    """What is compared: the models, and of each grid the best on validation.

    Neither what was trained on the validation items, too, nor what is outdated.
    """
    groups = [[model] for model in section.models] + list(section.grids.values())
    found = []
    for group in groups:
        own = [m for m in group if not (m.saw_validation or m.outdated)]
        found += [max(own, key=lambda model: model.validation or 0.0)] if own else []
    return found


def _references(
    models: Sequence[Model], baselines: Sequence[str]
) -> list[tuple[Model, str]]:
    if len(models) < 2:
        return []
    found = []
    if any(model.validation is not None for model in models):
        best = max(models, key=lambda model: model.validation or 0.0)
        found.append((best, 'the best on validation N@10'))
    for model in models:
        if model.key in baselines and model not in [one for one, _ in found]:
            found.append((model, 'the chosen baseline'))
    return found


def _slice_tables(
    users: Users, models: list[Model], values: Array, settings: Settings
) -> list[SliceTable]:
    found = []
    for title, counts, edges in (
        ('Length of the history (training interactions)', users.history, LENGTHS),
        ('Training interactions of the target item', users.popularity, COUNTS),
    ):
        parts = slices(counts, edges)
        mean, low, high = [], [], []
        for part in parts:
            own = values[part.user][:, :, _N10]
            draws = bootstrap(own, settings.resamples, settings.seed)
            bounds = percentile_interval(draws, settings.level)
            mean.append(own.mean(axis=0))
            low.append(bounds[0])
            high.append(bounds[1])
        found.append(
            SliceTable(
                title,
                [part.label for part in parts],
                [len(part.user) for part in parts],
                models,
                np.stack(mean, axis=1),
                np.stack(low, axis=1),
                np.stack(high, axis=1),
            )
        )
    return found


def analyse(
    section: Section, baselines: Sequence[str] = (), settings: Settings | None = None
) -> Analysis:
    """Computes everything that is shown of a section.

    Intervals and tests are of each user's metrics, averaged over seeds: they tell how
    certain a number is for other users of the same kind, given these trained models.

    Args:
        section: A table on a data set.
        baselines: Names of the cells, or points of grids, that the others are compared
            with, besides the one that is best on validation.
        settings: How much is resampled.
    """
    settings = settings or Settings()
    grids = [model for grid in section.grids.values() for model in grid]
    tested = _tested(section)
    analysis = Analysis(section, {}, [], [], None)
    for protocol in section.protocols:
        rows = _rows(section, [*section.models, *grids], protocol)
        analysis.tables[protocol] = rows
        kept = [(r, v) for r in rows if (v := r.model.users(protocol)) is not None]
        if not kept:
            continue
        values = np.stack([value for _, value in kept], axis=1)
        users, num_models, _ = values.shape
        analysis.num_users = users
        flat = values.reshape(users, -1)
        draws = bootstrap(flat, settings.resamples, settings.seed)
        draws = draws.reshape(-1, num_models, len(METRICS))
        low, high = percentile_interval(draws, settings.level)
        for i, (row, _) in enumerate(kept):
            row.low, row.high = low[i], high[i]
        if protocol == section.protocols[0]:
            models = [row.model for row, _ in kept]
            plain, refits = (
                [
                    i
                    for i, model in enumerate(models)
                    if model in section.models
                    and model.saw_validation is saw
                    and not model.outdated
                ]
                for saw in (False, True)
            )
            compared = [model for model in models if model in tested]
            analysis.tests = [
                Tests(one, why, _compare(compared, one, protocol, settings))
                for one, why in _references(compared, baselines)
            ]
            known = load_users(section) if plain or refits else None
            for group in (plain, refits):
                if known is not None and group:
                    analysis.slices += _slice_tables(
                        known, [models[i] for i in group], values[:, group], settings
                    )
    return analysis
