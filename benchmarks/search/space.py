"""What a search chooses from, and the recipe that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hellm_pyg.checkpoint import atomic
from hellm_pyg.config import load_config, recipes, to_dict

KEYS = {'recipe', 'space', 'overrides'}
COMMON = ['train.eval_every=1']  # what prunes, and what is compared


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line."""


_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        'tag:yaml.org,2002:seq', value, flow_style=True
    ),
)


class Space(NamedTuple):
    """A grid of values beside the recipe that they are laid over.

    Args:
        name: Name of the space and of the recipe that is written.
        recipe: File or name of the packaged recipe to start from.
        values: Values to choose from, by dotted key.
        overrides: Changes of the recipe during the search only.
    """

    name: str
    recipe: str
    values: dict[str, list[Any]]
    overrides: list[str]


def load_space(path: Path) -> Space:
    """Reads a space; without a key ``recipe`` it is of the recipe of its name.

    Raises:
        ValueError: If the file cannot be read, a key is unknown, or the recipe's own
            value is not among those to choose from: the search begins with it.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"'{path}' is no space that can be read: {error}") from None
    if not isinstance(raw, dict) or 'space' not in raw or set(raw) - KEYS:
        raise ValueError(f'{path} needs to hold {sorted(KEYS)} (got {raw!r})')
    recipe = raw.get('recipe', path.stem)
    space = Space(path.stem, recipe, raw['space'], [*COMMON, *raw.get('overrides', [])])
    own = own_point(space, [])
    for key, values in space.values.items():
        if own[key] not in values:
            raise ValueError(
                f"{path.name}: '{key}' needs to list {own[key]!r}, the value of the "
                f'recipe {recipe!r} (got {values})'
            )
    return space


def own_point(space: Space, overrides: list[str]) -> dict[str, Any]:
    """The recipe's own values of what is searched."""
    config = to_dict(load_config(space.recipe, overrides))
    point = {}
    for key in space.values:
        value: Any = config
        for part in key.split('.'):
            if part not in value:
                raise ValueError(f"'{key}' is not a key of {space.recipe!r}")
            value = value[part]
        point[key] = value
    return point


def assignments(point: Mapping[str, Any]) -> list[str]:
    """A point as overrides, which are YAML, as JSON is."""
    return [f'{key}={json.dumps(value)}' for key, value in point.items()]


def datasets(recipe: str) -> list[str]:
    """Names of a recipe's data sets."""
    path = Path(recipe) if Path(recipe).is_file() else recipes()[recipe]
    return list(yaml.safe_load(path.read_text()).get('datasets', {}))


def write_recipe(
    path: Path, space: Space, points: Mapping[str, Mapping[str, Any]], comment: str
) -> None:
    """Writes the complete recipe of the winners.

    Args:
        path: The file.
        space: What was searched.
        points: The winner by data set. The first one's stands at the top of the recipe
            and holds for the data sets that have none.
        comment: How it was found.
    """
    first, *_ = points
    every = {
        name: to_dict(
            load_config(
                space.recipe,
                [f'dataset={name}', *assignments(points.get(name, points[first]))],
            )
        )
        for name in dict.fromkeys([*points, *datasets(space.recipe)])
    }
    top = every[first]
    parts = {name: _difference(config, top) for name, config in every.items()}
    text = yaml.dump({**top, 'datasets': parts}, Dumper=_Dumper, sort_keys=False)
    lines = ''.join(f'# {line}'.rstrip() + '\n' for line in comment.splitlines())
    with atomic(path) as temporary:
        temporary.write_text(lines + text)


def _difference(config: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(other.get(key), dict):
            if inner := _difference(value, other[key]):
                changed[key] = inner
        elif key not in other or other[key] != value:
            changed[key] = value
    return changed
