"""A search on one data set: Optuna's sampler and pruner over trials in processes."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import PartialFixedSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from benchmarks.search import trial as trials
from benchmarks.search.space import Space, assignments, own_point
from hellm_pyg.assembly import default_arguments
from hellm_pyg.config import Config, load_config, parse, to_dict
from hellm_pyg.training.record import commit

STARTUP = 4  # trials before those that the sampler models
WARMUP = 3  # the first epoch after which a trial may be pruned
REDRAWS = 10

Train = Callable[..., trials.Outcome]


class Budget(NamedTuple):
    """What every model gets.

    Args:
        trials: Number of trials; one that fails counts, one that is killed goes on.
        minutes: Of training and validation, a trial.
        seed: Seed of the sampler.
    """

    trials: int = 8
    minutes: float = 3.0
    seed: int = 0


def _say(text: str) -> None:
    print(text, flush=True)


def _whole(config: Config) -> dict[str, Any]:
    """All values, those that are left to the model, too."""
    model = {**default_arguments(config), **config.model}
    return {**to_dict(config), 'model': model}


class Search:
    """Trials of a space on a data set, kept in ``study.db``.

    Trial ``n`` is a function of the seed and the outcomes before it, so that a search
    that was killed goes on as if it had not been. The first trial is the recipe as it
    is. The validation chooses; the test items are never read.

    Args:
        space: What is chosen from.
        dataset: One of the recipe's data sets.
        budget: The budget.
        folder: Where the study and the running trial are kept.
        overrides: Changes of the recipe that are there before the search.
        train: What trains.
        record: What :meth:`to_dict` returned, perhaps on another machine: where the
            folder has no trials yet, the search goes on from its.

    Raises:
        ValueError: If the folder, or the record, holds another search.
    """

    def __init__(
        self,
        space: Space,
        dataset: str,
        budget: Budget,
        folder: Path,
        overrides: list[str] | None = None,
        train: Train = trials.train,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.space, self.dataset, self.budget = space, dataset, budget
        self.folder, self.train = folder, train
        self.overrides = [f'dataset={dataset}', *(overrides or [])]
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name='search',
            storage=f'sqlite:///{folder.absolute() / "study.db"}',
            direction='maximize',
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(STARTUP - 1, WARMUP),
        )
        self._claim(record or {})

    def _claim(self, record: Mapping[str, Any]) -> None:
        overrides = [*self.overrides, *self.space.overrides]
        task: dict[str, Any] = {
            'space': self.space.values,
            'config': _whole(load_config(self.space.recipe, overrides)),
            'minutes': self.budget.minutes,
            'seed': self.budget.seed,
        }
        where = f"'{self.folder}'"
        found = self.study.user_attrs.get('task')
        recorded = found is None and task.keys() <= record.keys()
        if recorded:
            found = {key: record[key] for key in task}
            where = f'The record of {self.space.name!r} on {self.dataset}'
        if found is not None:
            config = _whole(parse(found['config'], Config, '', where))
            old = {**found, 'config': self._unsearched(config)}
            new = {**task, 'config': self._unsearched(task['config'])}
            for key, value in old.items():
                if value != new[key]:
                    raise ValueError(
                        f"{where} holds a search with another '{key}': remove it "
                        f'to search anew (got {new[key]}, there it is {value})'
                    )
        self.study.set_user_attr('task', task)
        for run in record['runs'] if recorded else ():
            self._remember(run)

    def _unsearched(self, config: dict[str, Any]) -> dict[str, Any]:
        """What the search keeps, wherever the recipe starts from."""
        kept = copy.deepcopy(config)
        for key in self.space.values:
            *sections, name = key.split('.')
            functools.reduce(dict.__getitem__, sections, kept).pop(name, None)
        return kept

    def _remember(self, run: Mapping[str, Any]) -> None:
        """Adds a trial of a record."""
        outcome = trials.Outcome(run['state'], run['curve'], run['error'])
        state, value = _verdict(outcome)
        curve = {record['epoch']: record[trials.METRIC] for record in run['curve']}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params=run['values'],
                distributions=self._choices(),
                user_attrs={
                    'outcome': outcome._asdict(),
                    'commit': run.get('commit'),
                },
                intermediate_values=curve,
            )
        )

    def _choices(self) -> dict[str, BaseDistribution]:
        return {
            name: CategoricalDistribution(values)
            for name, values in self.space.values.items()
        }

    def done(self) -> list[FrozenTrial]:
        """The trials that have ended by themselves."""
        return [t for t in self.study.get_trials(deepcopy=False) if _counts(t)]

    def run(self, say: Callable[[str], None] = _say) -> None:
        """Runs the trials that are left."""
        for killed in self.study.get_trials(states=(TrialState.RUNNING,)):
            if 'outcome' in killed.user_attrs:
                self._tell(
                    killed.number, trials.Outcome(**killed.user_attrs['outcome'])
                )
            else:  # the next trial has the same point and folder
                self.study.tell(killed.number, state=TrialState.FAIL)
        while (number := len(self.done())) < self.budget.trials:
            asked = self._ask(number)
            if asked is None:
                say(f'{self.space.name}: all of its points are tried')
                return
            self._try(asked)
            say(f'{self.space.name}, {self.dataset}: {self._line(self.done()[-1])}')

    def _ask(self, number: int) -> optuna.Trial | None:
        """A trial with a point that was not tried yet."""
        tried = [trial.params for trial in self.done()]
        points = (
            dict(zip(self.space.values, values, strict=True))
            for values in itertools.product(*self.space.values.values())
        )
        left = [point for point in points if point not in tried]
        if not left:
            return None
        if number == 0:
            return self._draw(0, own_point(self.space, self.overrides))
        for attempt in range(REDRAWS):
            asked = self._draw((self.budget.seed, number, attempt), {})
            if asked.params in left:
                return asked
            self.study.tell(asked, state=TrialState.FAIL)
        # The sampler does not let go of what it knows.
        random = np.random.default_rng((self.budget.seed, number))
        return self._draw(0, left[random.integers(len(left))])

    def _draw(self, key: int | tuple[int, ...], fixed: dict[str, Any]) -> optuna.Trial:
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        sampler = TPESampler(seed=seed, n_startup_trials=STARTUP)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
            self.study.sampler = PartialFixedSampler(fixed, sampler)
        return self.study.ask(self._choices())

    def _try(self, asked: optuna.Trial) -> None:
        text = json.dumps(asked.params, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        run_dir = self.folder / name

        def prune(epoch: int, value: float) -> bool:
            asked.report(value, epoch)
            return asked.should_prune()

        own = [*self.overrides, *self.space.overrides, *assignments(asked.params)]
        minutes = self.budget.minutes
        outcome = self.train(self.space.recipe, own, run_dir, minutes, prune)
        asked.set_user_attr('commit', commit())
        asked.set_user_attr('outcome', outcome._asdict())
        self._tell(asked.number, outcome)
        shutil.rmtree(run_dir, ignore_errors=True)

    def _tell(self, number: int, outcome: trials.Outcome) -> None:
        state, value = _verdict(outcome)
        self.study.tell(number, value, state)

    @property
    def best(self) -> dict[str, Any]:
        """The point with the highest metric on validation.

        Raises:
            ValueError: If every trial failed.
        """
        if not any(trial.state == TrialState.COMPLETE for trial in self.done()):
            errors = [trial.user_attrs['outcome']['error'] for trial in self.done()]
            raise ValueError(
                f'{self.space.name}, {self.dataset}: no trial was completed ({errors})'
            )
        return self.study.best_params

    def to_dict(self) -> dict[str, Any]:
        """All trials with what they cost."""
        return {
            'recipe': self.space.recipe,
            'config': self.study.user_attrs['task']['config'],
            'dataset': self.dataset,
            'trials': self.budget.trials,
            'minutes': self.budget.minutes,
            'seed': self.budget.seed,
            'metric': f'validation {trials.METRIC}',
            'space': self.space.values,
            'best': {'values': self.best, trials.METRIC: self.study.best_value},
            'runs': [_record(trial) for trial in self.done()],
        }

    def _line(self, trial: FrozenTrial) -> str:
        record = _record(trial)
        values = ', '.join(f'{key}={value}' for key, value in record['values'].items())
        number = len(self.done())
        metric = record[trials.METRIC]
        text = 'none' if metric is None else f'{metric:.4f}'
        return (
            f'trial {number} of {self.budget.trials}, {values}: {trials.METRIC} {text} '
            f'({record["state"]}, {record["epochs"]} epochs, {record["seconds"]:.0f} s)'
        )


def _verdict(outcome: trials.Outcome) -> tuple[TrialState, float | None]:
    if outcome.state == 'failed':
        return TrialState.FAIL, None
    if outcome.state == 'pruned':
        return TrialState.PRUNED, None
    return TrialState.COMPLETE, outcome.value


def _counts(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and 'outcome' in trial.user_attrs


def _record(trial: FrozenTrial) -> dict[str, Any]:
    outcome = trial.user_attrs['outcome']
    curve = outcome['curve']
    return {
        'values': trial.params,
        'state': outcome['state'],
        'error': outcome['error'],
        'commit': trial.user_attrs.get('commit'),
        trials.METRIC: max((r[trials.METRIC] for r in curve), default=None),
        'epochs': curve[-1]['epoch'] if curve else 0,
        'seconds': curve[-1]['seconds'] if curve else 0.0,
        'curve': curve,
    }
