"""What ``benchmarks.search`` has spent on every recipe, and what it has found."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import numbers
from benchmarks.report.tables import Cell, Table

METRIC = 'N@10'


class Trial(NamedTuple):
    """One point that was tried."""

    values: dict[str, Any]
    state: str
    metric: float | None
    best_epoch: float
    epochs: int
    seconds: float
    error: str


class Search(NamedTuple):
    """The budget of one recipe on one data set and what it led to.

    Args:
        name: Name of the space and of the recipe that was written.
        dataset: Where.
        trials: Number of trials that it was given.
        minutes: Of a trial.
        seed: Seed of the sampler.
        space: Values to choose from, by key.
        values: The winner.
        best: Its metric on validation.
        tried: All trials that ended.
        carried: The other data set that the search began at, if it did so.
    """

    name: str
    dataset: str
    trials: int
    minutes: float
    seed: int
    space: dict[str, list[Any]]
    values: dict[str, Any]
    best: float
    tried: list[Trial]
    carried: str | None


def load_searches(folder: Path) -> list[Search]:
    """The searches of a folder, each with those that began at its winner.

    The folder may not be there.

    Raises:
        ValueError: If a file is none of a search.
    """
    found = []
    for path in sorted(folder.glob('*.json')):
        try:
            content = json.loads(path.read_text())
            found.append(_search(path.stem, content, None))
            for other in content.get('carried', {}).values():
                found.append(_search(path.stem, other, content['dataset']))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"'{path}' is no result of 'benchmarks.search': "
                f'{type(error).__name__}: {error}'
            ) from None
    return found


def _search(name: str, content: Mapping[str, Any], carried: str | None) -> Search:
    tried = [
        Trial(
            run['values'],
            run['state'],
            run[METRIC],
            _best_epoch(run['curve']),
            run['epochs'],
            run['seconds'],
            run['error'],
        )
        for run in content['runs']
    ]
    best = content['best']
    return Search(
        name,
        content['dataset'],
        content['trials'],
        content['minutes'],
        content['seed'],
        content['space'],
        best['values'],
        best[METRIC],
        tried,
        carried,
    )


def _best_epoch(curve: Sequence[Mapping[str, float]]) -> float:
    if not curve:
        return 0
    return max(curve, key=lambda row: row[METRIC])['epoch']


def budgets(
    found: Sequence[Search], borrowed: Sequence[str] = (), others: Sequence[str] = ()
) -> Table:
    """What was spent on choosing, and what was chosen.

    Args:
        found: The searches.
        borrowed: Recipes of the same data that were searched on others alone.
        others: Recipes of the same data that were not searched.
    """
    body = []
    for search in found:
        states = Counter(trial.state for trial in search.tried)
        counts = ', '.join(f'{number} {state}' for state, number in states.items())
        values = ', '.join(
            f'{key}={numbers.setting(value)}' for key, value in search.values.items()
        )
        points = math.prod(len(values) for values in search.space.values())
        spent = sum(trial.seconds for trial in search.tried)
        body.append(
            [
                Cell(search.name),
                Cell(search.dataset + _origin(search, ', from')),
                Cell(_budget(search)),
                Cell(counts or 'none ended'),
                Cell(numbers.duration(spent)),
                Cell(f'{len(search.tried)} of {points:,}'),
                Cell(numbers.decimal(search.best)),
                Cell(values or '-', code=True),
            ]
        )
    columns = ['recipe', 'data', 'budget', 'outcomes', 'spent', 'points\ntried']
    columns += [f'validation\n{METRIC}', 'chosen']
    caption = f'Validation {METRIC} chose; no test item was read by a search.'
    caption += _equality(found)
    if borrowed:
        caption += (
            ' Not searched on these data, with the settings of others: '
            f'{", ".join(borrowed)}.'
        )
    if others:
        caption += f' Not searched, of settings by hand: {", ".join(others)}.'
    caption += _haste(found) + _rising(found)
    return Table('Search', columns, body, caption, words={1, 2, 3, 7})


def _budget(search: Search) -> str:
    return f'{search.trials} trials of {search.minutes:g} min'


def _equality(found: Sequence[Search]) -> str:
    """Whether all searches of a data set were given the same."""
    given: dict[str, dict[str, list[str]]] = {}
    for search in found:
        own = given.setdefault(search.dataset, {})
        own.setdefault(_budget(search), []).append(search.name)
    if len(given) == len(found):  # there is nothing to compare
        return ''
    told = ''
    for dataset, own in given.items():
        if len(own) > 1:
            each = [f'{", ".join(names)}: {budget}' for budget, names in own.items()]
            told += f' Budgets differ on {dataset} ({"; ".join(each)}).'
    return told or ' On each data set the searched recipes were given the same budget.'


def _haste(found: Sequence[Search]) -> str:
    """What short trials favour, where they were short."""
    states = Counter(trial.state for search in found for trial in search.tried)
    if 2 * states['time is up'] <= states.total():
        return ''
    return (
        ' Most trials ended because their time was up: short trials and pruning favour '
        'settings that learn fast.'
    )


def _rising(found: Sequence[Search]) -> str:
    """How many trials had not reached their best yet."""
    ended = [t for search in found for t in search.tried if t.state != 'pruned']
    rising = sum(trial.best_epoch == trial.epochs > 0 for trial in ended)
    if not rising:
        return ''
    return f' Of {len(ended)} that were not pruned {rising} were best at their end.'


def trials(search: Search) -> Table:
    """Every trial of a search, in its order."""
    body: list[list[Cell]] = []
    for trial in search.tried:
        won = trial.values == search.values
        state = f'{trial.state} ({trial.error})' if trial.error else trial.state
        body.append(
            [
                Cell(str(len(body) + 1)),
                *(
                    Cell(numbers.setting(trial.values.get(key)), best=won)
                    for key in search.space
                ),
                Cell(numbers.decimal(trial.metric), best=won),
                Cell(str(trial.epochs)),
                Cell(numbers.duration(trial.seconds)),
                Cell(state),
            ]
        )
    columns = ['trial', *search.space, f'validation\n{METRIC}', 'epochs', 'time']
    words = {len(columns)}
    space = '; '.join(
        f'{key}: {", ".join(map(numbers.setting, values))}'
        for key, values in search.space.items()
    )
    start = _origin(search, ', with the winner on')
    caption = (
        f'{search.trials} trials of {search.minutes:g} minutes of training and '
        f'validation each, seed {search.seed}. Space: {space}. The first trial is '
        f'the recipe as it is{start}; the metric is that of the best epoch. Bold: the '
        'winner; a pruned trial, which lagged behind the median, cannot win.'
    )
    title = f'{search.name}, {search.dataset}'
    return Table(title, [*columns, 'outcome'], body, caption, words=words)


def _origin(search: Search, words: str) -> str:
    return f'{words} {search.carried}' if search.carried else ''
