"""Recipes: configurations to and from YAML."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hellm_pyg.config.parse import nearest, parse
from hellm_pyg.config.sections import Config, DataConfig, EvalConfig

# The file of a prepared folder that holds its section ``data``.
PREPARED = 'dataset.yaml'
# Of that section, what a recipe decides on, whatever the data.
OF_RECIPE = ('knn', 'knn_direction', 'knn_index', 'drop_last', 'sample')
# Sections that a run's configuration may lack, as one of an older version does.
OPTIONAL = {'ensemble'}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 that reads ``1e-3`` as a number and has a key once, as YAML 1.2 does."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping as it is written, of which a later key would hide an earlier."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                fault = f"the key '{key.value}' is given twice"
                raise yaml.MarkedYAMLError(problem=fault, problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes the text that :class:`_Loader` would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        'tag:yaml.org,2002:float',
        re.compile(r'^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
        list('-+.0123456789'),
    )
# Dates stay the text that they are written as.
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != 'tag:yaml.org,2002:timestamp']
    for first, pairs in _Loader.yaml_implicit_resolvers.items()
}


def recipes() -> dict[str, Path]:
    """Returns the packaged recipes by name."""
    folder = Path(str(resources.files('hellm_pyg.recipes')))
    return {path.stem: path for path in sorted(folder.glob('*.yaml'))}


def _read(recipe: str | Path) -> tuple[dict, str]:
    path, packaged = Path(recipe), recipes()
    if not path.is_file():
        if str(recipe) not in packaged:
            raise ValueError(
                f"'recipe' is neither a file nor a packaged recipe (got {str(recipe)!r}"
                f'); the nearest is {nearest(str(recipe), packaged)!r}, all are '
                + ', '.join(packaged)
            )
        path = packaged[str(recipe)]
    try:
        raw = yaml.load(path.read_text(encoding='utf-8'), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not YAML: {_one_line(error)}') from None
    if not isinstance(raw, dict):
        raise ValueError(f'{path} needs to hold sections of keys (got {raw!r})')
    return raw, path.name


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).replace('in "<unicode string>", ', 'in ').split())


def _merge(base: dict, other: dict) -> dict:
    merged = dict(base)
    for key, value in other.items():
        old = merged.get(key)
        nested = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if nested else value  # type: ignore[arg-type]
    return merged


def _override(raw: dict, override: str) -> dict:
    key, equals, text = override.partition('=')
    names = key.strip().split('.')
    if not equals or not all(names):
        raise ValueError(f"an override needs the form 'a.b=c' (got {override!r})")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(
            f'the override {override!r} is not YAML: {_one_line(error)}'
        ) from None
    parse(_assign({}, names, value), Config, '', f'the override {override!r}')
    if names == ['model', 'name'] and raw.get('model', {}).get('name') != value:
        return {**raw, 'model': {'name': value}}
    return _assign(raw, names, value)


def _assign(section: dict, names: Sequence[str], value: Any) -> dict:
    name, *rest = names
    if rest:
        inner = section.get(name) or {}
        if not isinstance(inner, dict):
            raise ValueError(
                f"'{'.'.join(names)}' needs '{name}' to be a mapping (got {inner!r})"
            )
        value = _assign(inner, rest, value)
    return {**section, name: value}


def _prepared(name: str, datasets: Iterable[str], source: str) -> dict[str, Any]:
    """The section ``data`` of a prepared folder, with absolute paths."""
    folder = Path(name).expanduser().absolute()
    if not (folder / PREPARED).is_file():
        known = ', '.join(datasets) or 'none'
        what = f", a folder without '{PREPARED}'" if folder.is_dir() else ''
        raise ValueError(
            f"'dataset' needs to be a section of 'datasets' in {source}: {known} (got "
            f"{name!r}{what}); or a folder that 'hellm prepare table' has made"
        )
    raw, _ = _read(folder / PREPARED)
    parse(raw, Config, '', str(folder / PREPARED))
    data = raw.get('data') or {}
    for key in ('interactions', 'root', 'items'):
        if data.get(key):
            data[key] = str(folder / data[key])
    features = data.get('features') or {}
    return data | {'features': {m: str(folder / path) for m, path in features.items()}}


def _with_dataset(
    raw: dict, name: str, datasets: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """A recipe with the data set of its ``datasets``, or of a prepared folder."""
    if name in datasets:
        parse(datasets[name], Config, '', f"{source}, 'datasets.{name}'")
        return _merge(raw, datasets[name])
    own = raw.get('data') or {}
    kept = {key: own[key] for key in own if key in OF_RECIPE}
    data = _prepared(name, datasets, source)
    if 'knn' in data:  # the most neighbours that items have there
        knn = parse(raw, Config, '', source).data.knn
        data['knn'] = min(data['knn'], knn)
    return {**raw, 'data': kept | data}


def save_data_config(data: DataConfig, folder: str | Path) -> None:
    """Writes how a prepared folder is read; its paths are relative to the folder.

    What the recipe decides on is left out, of the neighbours but a ``knn`` below the
    usual: the most that these data allow.
    """
    values = to_dict(Config(data))['data']
    chosen = {key: value for key, value in values.items() if key not in OF_RECIPE}
    if data.knn < DataConfig.knn:
        chosen['knn'] = data.knn
    _write(
        {'data': chosen},
        Path(folder) / PREPARED,
        '# The data of this folder: "hellm pretrain RECIPE dataset=FOLDER" reads it.\n',
    )


def load_config(
    recipe: str | Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Reads a recipe and applies overrides to it.

    A recipe may have a section ``datasets`` of named partial recipes; the
    override ``dataset=<name>`` lays one of them over the rest. ``dataset=<folder>``
    reads the data of a prepared folder instead; of the recipe's own section ``data``
    the settings of the neighbours stay, with no more of them than the folder allows,
    ``drop_last`` and ``sample``. Overriding ``model.name`` by another class drops the
    recipe's arguments of the former one, overriding ``train.batch_size`` its
    ``train.batch_tokens``, which would otherwise be what counts. Overriding
    ``train.max_len`` sets its ``model.max_len``, too.

    Args:
        recipe: File or name of a packaged recipe; :obj:`None` starts from the
            defaults.
        overrides: Assignments ``a.b=c``; the value is read as YAML.

    Raises:
        ValueError: If a key is unknown (names the nearest one) or given twice, a
            value has the wrong type, or ``dataset`` is given more than once.
    """
    chosen = [o.removeprefix('dataset=') for o in overrides if o.startswith('dataset=')]
    if len(chosen) > 1:
        raise ValueError(
            f"'dataset' needs to be given once (got {' and '.join(map(repr, chosen))})"
        )
    raw, source = ({}, 'the defaults') if recipe is None else _read(recipe)
    datasets = raw.pop('datasets', None) or {}
    if not isinstance(datasets, dict):
        raise ValueError(
            f"'datasets' in {source} needs to be a mapping (got {datasets!r})"
        )
    if chosen:
        raw = _with_dataset(raw, chosen[0], datasets, source)
    parse(raw, Config, '', source)
    if any(override.startswith('train.batch_size=') for override in overrides):
        raw = _merge(raw, {'train': {'batch_tokens': None}})
    # First the class: setting it drops the arguments of the former one.
    for override in sorted(overrides, key=lambda o: not o.startswith('model.name=')):
        if not override.startswith('dataset='):
            raw = _override(raw, override)
    keys = {override.partition('=')[0] for override in overrides}
    lengths = {'train.max_len', 'model.max_len'}
    if keys & lengths == {'train.max_len'} and 'max_len' in (raw.get('model') or {}):
        raw = _merge(raw, {'model': {'max_len': raw['train']['max_len']}})
    return parse(raw, Config, '', source)


def to_dict(config: Config) -> dict[str, Any]:
    """Returns a configuration as nested plain values (tuples as lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def save_config(config: Config, path: str | Path) -> None:
    """Writes a configuration as YAML; :func:`load_config` reads it back."""
    _write(to_dict(config), path)


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads what :func:`save_config` wrote into the folder of a run, as a whole.

    A recipe may leave keys out. A file that has been cut off would read as such a
    recipe, hence it needs all sections here, and the last one to its end.

    Args:
        path: The file.
        overrides: As of :func:`load_config`.

    Raises:
        ValueError: If the file is not there or incomplete, and as of
            :func:`load_config`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"'run' needs to be the folder of a run (got '{path.parent}', without "
            f"'{path.name}')"
        )
    raw, _ = _read(path)
    last = raw.get('eval')
    sections = [f.name for f in dataclasses.fields(Config) if f.name not in OPTIONAL]
    lacks = [f"'{name}'" for name in sections if name not in raw]
    if not lacks:
        lacks = [
            f"'eval.{f.name}'"
            for f in dataclasses.fields(EvalConfig)
            if not isinstance(last, dict) or last.get(f.name) is None
        ]
    if lacks:
        raise ValueError(
            f"'{path}' is damaged: a run's configuration has {', '.join(lacks)}, too; "
            f'put the whole file back'
        )
    if 'max_len' in (raw.get('model') or {}):  # of the weights; less may be read
        overrides = [f'model.max_len={raw["model"]["max_len"]}', *overrides]
    return load_config(path, overrides)


def _write(values: dict[str, Any], path: str | Path, head: str = '') -> None:
    from hellm_pyg.checkpoint import atomic  # torch is slow to import

    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    with atomic(path) as temporary:
        Path(temporary).write_text(head + text, encoding='utf-8')
