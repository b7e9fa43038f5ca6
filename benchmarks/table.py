"""Tables of experiments: recipes with overrides and grids x data sets x seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

RECIPES = Path(__file__).parent / 'recipes'
NEEDED = {'datasets', 'seeds', 'protocols', 'cells'}
TABLE_KEYS = NEEDED | {'overrides', 'runs', 'base'}
CELL_KEYS = {
    'recipe',
    'overrides',
    'grid',
    'tables',
    'members',
    'teachers',
    'refit',
    'datasets',
    'seeds',
}


class Cell(NamedTuple):
    """One run of a table.

    Args:
        name: Name of the run, the cell's with the point of its grid.
        dataset: One of the recipe's data sets.
        seed: Seed of the training.
        recipe: File or name of a packaged recipe.
        overrides: Changes of the recipe.
        cell: Name of the cell in the table.
        grid: The point of the cell's grid.
        run_dir: Where the run lives, from the current folder.
        sources: Keys of the cells whose runs it reads.
    """

    name: str
    dataset: str
    seed: int
    recipe: str
    overrides: list[str]
    cell: str
    grid: dict[str, Any]
    run_dir: str
    sources: list[str]

    @property
    def key(self) -> str:
        """Name of the result."""
        return f'{self.dataset}-{self.name}-{self.seed}'


def load_table(path: Path) -> dict[str, Any]:
    """Reads a table.

    Raises:
        ValueError: If it cannot be read, a key is unknown or missing, seeds are no
            numbers, a cell reads the item table of one that is not there, or not with
            its data set and seed, or has it as a member or a teacher, or there is no
            such base.
    """
    try:
        table = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"'{path}' cannot be read as a table: {error}") from error
    _check(path.name, table, TABLE_KEYS, NEEDED)
    for name, cell in table['cells'].items():
        _check(f'{path.name}: {name}', cell, CELL_KEYS, {'recipe'})
        for key in ('tables', 'members', 'teachers', 'refit'):
            named = cell.get(key, {})
            named = named if isinstance(named, dict) else {key: named}
            for source in named.values():
                if source not in table['cells']:
                    raise ValueError(
                        f"{path.name}: '{key}' of {name!r} needs names of cells (got "
                        f'{source!r})'
                    )
    for where, seeds in (
        ('seeds', table['seeds']),
        *((name, cell.get('seeds', [])) for name, cell in table['cells'].items()),
    ):
        _check_seeds(f'{path.name}: {where}', seeds, table['datasets'])
    runs = read_cells(table)
    names = list(dict.fromkeys(run.name for run in runs.values()))
    if 'base' in table and table['base'] not in names:
        raise ValueError(
            f"{path.name}: 'base' needs to be one of {names} (got {table['base']!r})"
        )
    return table


def read_cells(
    table: Mapping[str, Any],
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, Cell]:
    """The runs of a table, see :func:`cells`, by the names of their results.

    Raises:
        ValueError: If there are no seeds for one of the data sets, or a run is to read
            one that is not among them.
    """
    runs = {cell.key: cell for cell in cells(table, datasets, seeds)}
    for key, run in runs.items():
        if lost := [source for source in run.sources if source not in runs]:
            raise ValueError(
                f"{key!r} reads {lost}, which the table does not have: their cells' "
                f"'datasets' or 'seeds' are without its own, or they have a 'grid'"
            )
    return runs


def _check_seeds(where: str, seeds: Any, datasets: Sequence[str]) -> None:
    lists = list(seeds.values()) if isinstance(seeds, dict) else [seeds]
    known = not isinstance(seeds, dict) or set(seeds) <= set(datasets)
    if not known or not all(
        isinstance(own, list) and all(type(seed) is int for seed in own)
        for own in lists
    ):
        raise ValueError(
            f"{where}: 'seeds' needs whole numbers, [2024], or lists of them for some "
            f'of {list(datasets)} (got {seeds!r})'
        )


def _check(where: str, section: Any, known: set[str], needed: set[str]) -> None:
    if not isinstance(section, dict):
        raise ValueError(f'{where} needs to hold {sorted(known)} (got {section!r})')
    if unknown := set(section) - known:
        raise ValueError(f'{where}: unknown {sorted(unknown)}; known {sorted(known)}')
    if missing := needed - set(section):
        raise ValueError(f'{where}: needs {sorted(missing)}')


def find_recipe(name: str) -> str:
    """The tuned recipe of that name if the search has written one, else the name."""
    tuned = RECIPES / f'{name}.yaml'
    if not tuned.is_file():
        return name
    here = Path.cwd()
    return str(tuned.relative_to(here) if tuned.is_relative_to(here) else tuned)


def cells(
    table: Mapping[str, Any],
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[Cell]:
    """The runs of a table: by data set and seed, then in the order of the file.

    A cell's own ``datasets`` restrict it to some of the table's, its own ``seeds``
    take the place of the table's. Both kinds of seeds are a list or, by data set,
    lists; a data set that a cell's do not name has the table's.

    Args:
        table: What :func:`load_table` returns.
        datasets: Instead of the table's: some of them or others, which all cells have.
        seeds: Instead of the table's and the cells'.

    Raises:
        ValueError: If there are no seeds for one of the data sets.
    """
    for dataset in datasets or table['datasets']:
        own = {
            name: seeds or _seeds(table, cell, dataset)
            for name, cell in table['cells'].items()
            if dataset in cell.get('datasets', [dataset])
            or dataset not in table['datasets']
        }
        for seed in dict.fromkeys(itertools.chain(*own.values())):
            for name in own:
                if seed in own[name]:
                    yield from _points(table, name, dataset, seed)


def _seeds(
    table: Mapping[str, Any], cell: Mapping[str, Any], dataset: str
) -> Sequence[int]:
    for seeds in (cell.get('seeds', {}), table['seeds']):
        if not isinstance(seeds, dict):
            return seeds
        if dataset in seeds:
            return seeds[dataset]
    raise ValueError(
        f"'--datasets' needs some of {list(table['seeds'])}, of which the table has "
        f"seeds, or '--seeds' beside it (got {dataset!r})"
    )


def _points(
    table: Mapping[str, Any], name: str, dataset: str, seed: int
) -> Iterator[Cell]:
    cell, runs = table['cells'][name], f'{table.get("runs", "runs")}/{dataset}'
    overrides = [f'dataset={dataset}', f'train.seed={seed}']
    overrides += [*table.get('overrides', []), *cell.get('overrides', [])]
    for table_name, source in cell.get('tables', {}).items():
        overrides.append(f'llm.tables.{table_name}={runs}/{source}/{seed}')
    if 'members' in cell:  # instead of the recipe's, and in this order
        overrides.append('ensemble.members={}')
    for member, source in cell.get('members', {}).items():
        overrides.append(f'ensemble.members.{member}={runs}/{source}/{seed}')
    if 'teachers' in cell:
        overrides.append('train.distill.runs={}')
    for teacher, source in cell.get('teachers', {}).items():
        overrides.append(f'train.distill.runs.{teacher}={runs}/{source}/{seed}')
    if 'refit' in cell:
        former = f'{runs}/{cell["refit"]}/{seed}'
        overrides += ['train.split=train+val', f'train.refit={former}']
    kinds = ('tables', 'members', 'teachers')
    read = [source for kind in kinds for source in cell.get(kind, {}).values()]
    read += [cell['refit']] if 'refit' in cell else []
    sources = [f'{dataset}-{source}-{seed}' for source in dict.fromkeys(read)]
    grid, recipe = cell.get('grid', {}), find_recipe(cell['recipe'])
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        parts = [f'{key.rpartition(".")[2]}={point[key]}' for key in point]
        # JSON is YAML, which overrides are read as.
        own = [f'{key}={json.dumps(value)}' for key, value in point.items()]
        label, own = '-'.join([name, *parts]), [*overrides, *own]
        folder = f'{runs}/{label}/{seed}'
        yield Cell(label, dataset, seed, recipe, own, name, point, folder, sources)
