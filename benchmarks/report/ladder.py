"""Cells of which validation alone was read, each beside what it changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import numbers
from benchmarks.report.cells import Model, Result, Section
from benchmarks.report.cost import each
from benchmarks.report.plan import load_plan
from benchmarks.report.tables import Cell, Table, named, remarks

METRICS = ('N@10', 'R@10')
IGNORED = (  # no levers
    'dataset',
    'data.root',
    'train.seed',
    'train.save_minutes',
    'train.precision',
)


@dataclass
class Ladder:
    """The models of a section in their order, and the one that all are compared with.

    Args:
        models: In the order of the table's file, or else by cell and point.
        base: :obj:`None` if it was not named, or has no result.
        named: How the base is called in the table.
    """

    models: list[Model]
    base: Model | None
    named: str | None

    @classmethod
    def of(cls, section: Section, baselines: Sequence[str] = ()) -> Ladder:
        """The ladder of a section without test numbers.

        Args:
            section: A table on a data set.
            baselines: Names of cells; the first that is there is the base, instead of
                that of the table's file.
        """
        plan = load_plan(section.table)
        models = sorted(
            section.everything,
            key=lambda model: (plan.place(model.key), _group(model.results[0])),
        )
        found = {model.key: model for model in models}
        name = next((one for one in baselines if one in found), plan.base)
        return cls(models, found.get(name or ''), name)

    @property
    def compared(self) -> list[Model]:
        """The models of the base's family, all if there is no base."""
        if self.base is None:
            return self.models
        family = self.base.name.family
        return [model for model in self.models if model.name.family == family]


def _group(result: Result) -> tuple[str, list[tuple[float, str]]]:
    """The cell, then the point of its grid."""
    point = [
        (float(value), '') if isinstance(value, int | float) else (np.inf, str(value))
        for value in (result.get('grid') or {}).values()
    ]
    return str(result.get('cell') or result.name), point


def difference(model: Model, base: Model, metric: str) -> float | None:
    """A share of the base's validation metric, over the seeds that both have."""
    own, other = (
        {r.seed: r.get('validation', 'metrics', metric) for r in m.results}
        for m in (model, base)
    )
    pairs = [(own[s], other[s]) for s in own if s in other and own[s] and other[s]]
    if not pairs:
        return None
    mine, its = (sum(values) for values in zip(*pairs, strict=True))
    return float(mine / its - 1)


def changes(result: Result, base: Result | None) -> str:
    """What a cell has otherwise than the base; without a base, its overrides.

    What another kind of model has otherwise is no list of levers: its recipe is named.
    """
    recipe = f'recipe {Path(result.get("recipe") or "?").stem}'
    if base is None:
        return ', '.join([recipe, *_overrides(result)])
    new, old = result.get('config'), base.get('config')
    if new is None or old is None:
        told = [one for one in _overrides(result) if one not in _overrides(base)]
        return ', '.join(told) or '-'
    if _kind(new) != _kind(old):
        return ', '.join([recipe, *_overrides(result)])
    return ', '.join(_differences(_seedless(old), _seedless(new))) or '-'


def _seedless(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration, the folders that it reads without the seed at their end."""
    llm, train = config.get('llm') or {}, config.get('train') or {}

    def plain(folders: Mapping[str, str]) -> dict[str, str]:
        end = f'/{train.get("seed")}'
        return {name: folder.removesuffix(end) for name, folder in folders.items()}

    if llm.get('tables'):
        llm = {**llm, 'tables': plain(llm['tables'])}
        config = {**config, 'llm': llm}
    if distill := train.get('distill'):
        distill = {**distill, 'runs': plain(distill['runs'])}
        config = {**config, 'train': {**train, 'distill': distill}}
    return config


def _kind(config: Mapping[str, Any]) -> tuple[bool, bool, str | None]:
    model = config.get('model') or {}
    return (
        bool(config.get('llm')),
        bool(config.get('ensemble')),
        model.get('name'),
    )


def _overrides(result: Result) -> list[str]:
    pairs = dict(text.split('=', 1) for text in result.get('overrides') or [])
    return [f'{key} = {value}' for key, value in pairs.items() if key not in IGNORED]


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], section: str = ''
) -> Iterator[str]:
    for key in {**old, **new}:
        path, was, now = f'{section}{key}', old.get(key), new.get(key)
        if was == now or path in IGNORED:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f'{path}.')
        elif isinstance(was, dict):
            yield f'without {path}'
        elif isinstance(now, dict):
            yield f'with {path}'
        else:
            yield f'{path} {numbers.setting(was)} → {numbers.setting(now)}'


def table(ladder: Ladder) -> Table:
    """Validation at the best epoch, against the base, and what it took."""
    base = ladder.base
    means = {
        m: [one.mean(one.validations(m)) for one in ladder.models] for m in METRICS
    }
    current = [i for i, model in enumerate(ladder.models) if not model.outdated]
    top = {m: max((means[m][i] or 0.0 for i in current), default=0.0) for m in METRICS}
    body = []
    for i, model in enumerate(ladder.models):
        row = [named(model), Cell(_told(model, base)), Cell(str(len(model.results)))]
        for metric in METRICS:
            mean, spread = means[metric][i], _spread(model, metric)
            row.append(Cell(numbers.decimal(mean), spread, best=mean == top[metric]))
            if base is not None:
                share = None if model is base else difference(model, base, metric)
                row.append(Cell(numbers.percent(share)))
        body.append([*row, *_cost(model)])
    against = ['against\nthe base'] if base else []
    columns = ['cell', 'changes', 'seeds']
    for metric in METRICS:
        columns += [f'validation\n{metric}', *against]
    columns += ['best\nepoch', 'epochs', 'training', 'users\na second']
    columns += ['trained\nparameters', 'peak\nmemory']
    return Table('Ladder', columns, body, _caption(ladder), words={1})


def _told(model: Model, base: Model | None) -> str:
    first = model.results[0]
    if base is None:
        return changes(first, None)
    if model is base:
        return 'the base'
    same = [result for result in base.results if result.seed == first.seed]
    return changes(first, (same or base.results)[0])


def _cost(model: Model) -> list[Cell]:
    return [
        Cell(each(model, 'best_epoch')),
        Cell(each(model, 'epochs')),
        Cell(numbers.duration(model.typical('training_seconds'))),
        Cell(numbers.size(model.typical('users_per_second'))),
        Cell(numbers.size(model.typical('trained_parameters'))),
        Cell(numbers.memory(model.typical('peak_memory'))),
    ]


def _spread(model: Model, metric: str) -> str:
    values = model.validations(metric)
    if len(values) < 2:
        return ''
    return f'± {numbers.decimal(float(np.std(values, ddof=1)))}'


def _caption(ladder: Ladder) -> str:
    words = ['Validation at the best epoch; the test items were not read.']
    if ladder.base is not None:
        words.append(
            f'The base is {ladder.base.name.label}: changes are all settings that '
            'differ from it, but for folders, the seed and the number format; '
            'differences are shares of its metric, of the seeds that both have.'
        )
    elif ladder.named:
        words.append(f'The base, {ladder.named}, has no result yet.')
    if all(len(model.results) == 1 for model in ladder.models):
        words.append('One seed each: what another seed would change is not known.')
    else:
        words.append('Means over seeds, ± their standard deviation.')
    words.append(
        'Training is that of the epochs of this cell alone; where none are recorded, '
        'validation may be in it.'
    )
    return ' '.join(words) + remarks(ladder.models)
