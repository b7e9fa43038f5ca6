"""Reads what ``benchmarks.run`` has left: a JSON file for each trained cell."""

from __future__ import annotations

import base64
import json
import re
import statistics
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report.names import Name, name_of
from benchmarks.report.outdated import outdated
from benchmarks.report.plan import Plan, load_plan
from benchmarks.report.statistics import Array
from hellm_pyg.evaluation import HEADLINE, ndcg, recall

METRICS = ('R@10', 'N@10', 'R@20', 'N@20')
OUTDATED = '‡'


def per_user(rank: np.ndarray) -> Array:
    """Recall and NDCG at 10 and 20 of every user, of shape ``[n, 4]``."""
    ranks = torch.from_numpy(rank)
    columns = [metric(ranks, k) for k in (10, 20) for metric in (recall, ndcg)]
    return torch.stack(columns, dim=1).numpy()


def _decode(packed: dict[str, str]) -> np.ndarray:
    width = re.search(r'uint(16|32)', packed['encoding'])
    if width is None:
        raise ValueError(f"'encoding' is unknown (got {packed['encoding']!r})")
    raw = zlib.decompress(base64.b64decode(packed['data']))
    return np.frombuffer(raw, f'<u{int(width[1]) // 8}').astype(np.float64) / 2


@dataclass(frozen=True)
class Result:
    """One trained cell: a model, a data set, a seed."""

    path: Path
    content: dict[str, Any]
    outdated: bool = False  # the file of its table asks for another one now

    @property
    def name(self) -> str:
        """Name of the cell."""
        return self.content['name']

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.content['dataset']

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.content['seed']

    @property
    def test(self) -> dict[str, Any]:
        """Test numbers by protocol."""
        return self.content['test']

    def get(self, *keys: str) -> Any:
        """A nested value, or :obj:`None` where a file has none."""
        value: Any = self.content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """Ranks of all users by protocol, which give the metrics of the file.

        Raises:
            ValueError: If they cannot be read or do not give these metrics.
        """
        packed = self.content.get('ranks') or {}
        if 'data' in packed:
            packed = {packed['protocol']: packed}
        ranks = {}
        for protocol, values in packed.items():
            try:
                ranks[protocol] = _decode(values)
            except (KeyError, ValueError, zlib.error) as error:
                raise ValueError(f"'{self.path}': unreadable ranks ({error})") from None
            means = per_user(ranks[protocol]).mean(axis=0)
            for metric, mean in zip(METRICS, means, strict=True):
                stored = self.content['test'][protocol]['metrics'].get(metric, mean)
                if abs(stored - mean) > 1e-6:
                    raise ValueError(
                        f"'{self.path}': its ranks give {metric} = {mean:.6f} (got "
                        f'{stored:.6f}), {protocol}'
                    )
        return ranks

    @property
    def curve(self) -> list[tuple[int, float, float]]:
        """Epoch, training seconds so far and N@10 of every validation."""
        rows = self.get('validation', 'curve') or []
        seconds = accumulate(row['seconds'] for row in rows)
        return [
            (row['epoch'], spent, row['metrics']['N@10'])
            for row, spent in zip(rows, seconds, strict=True)
            if row['metrics']
        ]

    @property
    def training_seconds(self) -> float | None:
        """Seconds spent in training epochs; of what has none, in fitting."""
        rows = self.get('validation', 'curve')
        if rows:
            return sum(row['seconds'] for row in rows)
        return self.get('seconds', 'training')

    @property
    def epoch_seconds(self) -> float | None:
        """Seconds of the median training epoch."""
        return self.get('validation', 'seconds_per_epoch')

    @property
    def peak_memory(self) -> int | None:
        """Largest memory of the process, or of its accelerator, in bytes."""
        peak = self.get('validation', 'peak_memory_bytes')
        peak = peak or self.get('peak_memory_bytes') or {}
        return peak.get('cuda', peak.get('process'))

    @property
    def test_reads(self) -> int | None:
        """How many models of its name the test items were read for."""
        return self.get('test_reads')

    @property
    def trained_parameters(self) -> int | None:
        """Number of trained parameters, 0 for what is only counted."""
        return self.get('trained_parameters')

    @property
    def parameters(self) -> int | None:
        """Number of all parameters, with those of a frozen backbone."""
        return self._either('parameters')

    @property
    def model_bytes(self) -> int | None:
        """Size of the files of the model, without a frozen backbone."""
        return self.get('model_bytes')

    @property
    def users_per_second(self) -> float | None:
        """Users ranked in a second of the test, or of the median validation.

        Of another library only lists are known, which are scored here.
        """
        if self.get('peer'):
            return None
        first: dict[str, Any] = next(iter(self.test.values()), {})
        tested = self.test.get(str(HEADLINE), first)
        if tested.get('seconds'):
            return tested['users'] / tested['seconds']
        rows = self.get('validation', 'curve') or []
        spent = [row['eval_seconds'] for row in rows if row['metrics']]
        users = self.get('validation_users')
        return users / statistics.median(spent) if users and spent else None

    @property
    def ranking_seconds(self) -> float | None:
        """Seconds to rank 1,000 users."""
        speed = self.users_per_second
        return None if speed is None else 1000 / speed

    @property
    def device(self) -> str | None:
        """What the model was trained and measured on."""
        device, threads = self._either('device'), self._either('threads')
        if device is None or threads is None:
            return device
        return f'{device}, {threads} thread{"" if threads == 1 else "s"}'

    @property
    def split_fingerprint(self) -> str | None:
        """What tells the split of the interactions from others, if it is recorded."""
        return self._either('split_fingerprint')

    @property
    def saw_validation(self) -> bool:
        """Whether the validation items were trained on."""
        return self.get('config', 'train', 'split') in ('train+val', 'all')

    def _either(self, key: str) -> Any:
        own = self.get('validation', key)
        return self.get(key) if own is None else own


@dataclass(eq=False)
class Model:
    """The seeds of one cell on one data set."""

    key: str
    name: Name
    results: list[Result] = field(default_factory=list)

    def mean(self, values: Sequence[float | None]) -> float | None:
        """Mean over the seeds that have a value."""
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def typical(self, name: str) -> float | None:
        """Median over seeds of what the results cost: a machine may have been busy."""
        costs = [getattr(result, name) for result in self.results]
        known = [cost for cost in costs if cost is not None]
        return statistics.median(known) if known else None

    def validations(self, metric: str) -> list[float]:
        """A metric on validation of each seed that has it."""
        found = [r.get('validation', 'metrics', metric) for r in self.results]
        return [value for value in found if value is not None]

    @property
    def validation(self) -> float | None:
        """Mean validation N@10, which chooses the reference."""
        return self.mean(self.validations('N@10'))

    @property
    def outdated(self) -> bool:
        """Whether the result of any seed is not what its table asks for now."""
        return any(result.outdated for result in self.results)

    @property
    def label(self) -> str:
        """How it is shown: what is outdated has a mark."""
        return self.name.label + f' {OUTDATED}' * self.outdated

    @property
    def saw_validation(self) -> bool:
        """Whether the validation items were trained on, of any seed."""
        return any(result.saw_validation for result in self.results)

    def metrics(self, protocol: str) -> Array | None:
        """Metrics of each seed, of shape ``[seeds, 4]``."""
        rows = [
            [tested['metrics'].get(metric, np.nan) for metric in METRICS]
            for result in self.results
            if (tested := result.test.get(protocol)) is not None
        ]
        return np.array(rows) if rows else None

    def seeds(self, protocol: str) -> set[int]:
        """The seeds that were tested under a protocol."""
        return {result.seed for result in self.results if protocol in result.test}

    def users(self, protocol: str, seeds: Collection[int] = ()) -> Array | None:
        """Metrics of each user, their mean over seeds, of shape ``[n, 4]``.

        :obj:`None` unless every seed has kept its ranks of this protocol.

        Args:
            protocol: One that was tested.
            seeds: Those to take; all if empty.
        """
        wanted = self.seeds(protocol).intersection(seeds or self.seeds(protocol))
        ranks = [r.ranks.get(protocol) for r in self.results if r.seed in wanted]
        found = [per_user(rank) for rank in ranks if rank is not None]
        if not found or len(found) < len(ranks):
            return None
        return np.mean(found, axis=0)


@dataclass
class Section:
    """One table on one data set."""

    table: str
    dataset: str
    folder: Path
    models: list[Model]
    grids: dict[str, list[Model]]
    failed: list[dict[str, Any]]

    @property
    def protocols(self) -> list[str]:
        """Protocols of the test numbers, the headline first."""
        found = dict.fromkeys(p for result in self.results for p in result.test)
        return sorted(found, key=lambda protocol: protocol != str(HEADLINE))

    @property
    def is_ladder(self) -> bool:
        """Whether validation alone was read."""
        return bool(self.results) and not self.protocols

    @property
    def has_printed_data(self) -> bool:
        """Whether its test items are those that others print numbers of."""
        return not any(
            result.get('config', 'data', key)
            for result in self.results
            for key in ('drop_last', 'sample')
        )

    @property
    def everything(self) -> list[Model]:
        """All models, with the points of grids."""
        return [*self.models, *(m for grid in self.grids.values() for m in grid)]

    @property
    def shown(self) -> list[Model]:
        """The models; with the points of grids if these are what is compared."""
        return self.everything if self.is_ladder else self.models

    @property
    def results(self) -> list[Result]:
        """All cells of the section."""
        return [result for model in self.everything for result in model.results]


def _load(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f'no {missing}')
    except ValueError as error:
        raise ValueError(
            f"'{path}' is no result of 'benchmarks.run': {error}"
        ) from None
    return content


def load(folder: Path) -> list[Section]:
    """The results of a folder, a section a data set, in the order of validation.

    The models that it cannot tell of, since they were trained on its items, come first.

    Raises:
        ValueError: If the folder holds no results, or a file is none.
    """
    results, failed = [], []
    for path in sorted(folder.glob('*.json')):
        if path.name.endswith('.failed.json'):
            failed.append(_load(path, 'name', 'dataset', 'seed'))
        else:
            content = _load(path, 'name', 'dataset', 'seed', 'test')
            results.append(Result(path, content))
    if not results and not failed:
        raise ValueError(f"'folder' needs results of 'benchmarks.run' (got '{folder}')")
    sections, table = {}, folder.resolve().name
    stale = outdated([result.path for result in results], table)
    results = [replace(result, outdated=result.path in stale) for result in results]
    for dataset in sorted(
        {r['dataset'] for r in failed} | {r.dataset for r in results}
    ):
        own = [result for result in results if result.dataset == dataset]
        sections[dataset] = Section(
            table,
            dataset,
            folder,
            _models([r for r in own if not r.get('grid')]),
            _grids([r for r in own if r.get('grid')], load_plan(table)),
            [r for r in failed if r['dataset'] == dataset],
        )
        _check_users(sections[dataset])
    return list(sections.values())


def _models(results: list[Result]) -> list[Model]:
    models: dict[str, Model] = {}
    for result in results:
        recipe = Path(result.get('recipe') or '').stem
        cell, grid = result.get('cell') or result.name, result.get('grid')
        name = name_of(cell, recipe, result.get('peer'), grid)
        models.setdefault(result.name, Model(result.name, name)).results.append(result)
    for model in models.values():
        model.results.sort(key=lambda result: result.seed)
    return sorted(
        models.values(),
        key=lambda m: (not m.saw_validation, m.validation or 0.0, m.key),
    )


def _grids(results: list[Result], plan: Plan) -> dict[str, list[Model]]:
    """The points of each grid, the grids in the order of the table's file."""
    names = {str(result.get('cell')): plan.place(result.name) for result in results}
    return {
        name: _models([result for result in results if str(result.get('cell')) == name])
        for name in sorted(names, key=lambda name: names[name])
    }


def _check_users(section: Section) -> None:
    sizes = {
        len(rank): result.path
        for result in section.results
        for rank in result.ranks.values()
    }
    if len(sizes) > 1:
        (n, one), (m, other) = list(sizes.items())[:2]
        raise ValueError(
            f"'{one}' and '{other}' rank {n} and {m} users: paired tests need the same"
        )
    splits = {
        result.split_fingerprint: result.path
        for result in section.results
        if result.split_fingerprint is not None
    }
    if len(splits) > 1:
        one, other = list(splits.values())[:2]
        raise ValueError(
            f"'{one}' and '{other}' are of different splits: paired tests need the same"
        )
