"""Experiments as data: nested dataclasses to and from YAML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml


def _at_least(low: int, section: object, *names: str) -> None:
    for name in names:
        if not getattr(section, name) >= low:
            raise ValueError(
                f"'{name}' needs to be at least {low} (got {getattr(section, name)})"
            )


@dataclass(frozen=True)
class DataConfig:
    """Where the interactions lie and how the graph is built from them.

    Args:
        interactions: File of interactions: sequence text
            (``user item item ...``), CSV, TSV, Parquet or JSONL.
        root: Folder of the processed cache.
        user: Column of the user ids (tables only).
        item: Column of the item ids (tables only).
        time: Column of the times; without it the row's position is the time.
        rating: Column of the ratings.
        min_rating: Drop interactions rated below.
        min_count: k-core: every user and item keeps at least so many.
        items: Item table (CSV, TSV, Parquet or JSONL).
        item_id: Id column of the item table.
        title: Column shown beside recommendations.
        features: Modality name to matrix file (``.npy``, ``.safetensors``).
        knn: Number of nearest neighbours of a modality hyperedge.
        knn_direction: ``'row'`` or ``'col'``, see ``KNNHyperedges``.
        knn_index: ``'flat'`` (exact) or ``'ivf'``.
    """

    interactions: str = ''
    root: str = 'cache'
    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    min_rating: float | None = None
    min_count: int = 0
    items: str | None = None
    item_id: str = 'item_id'
    title: str | None = 'title'
    features: dict[str, str] = field(default_factory=dict)
    knn: int = 10
    knn_direction: Literal['row', 'col'] = 'row'
    knn_index: Literal['flat', 'ivf'] = 'flat'


@dataclass(frozen=True)
class LLMConfig:
    """The language-model phase.

    Args:
        name: Hub name or folder of the backbone; ``'SmolLM2-135M-Instruct'``
            also resolves to the packaged weights.
        num_layers: Keep only so many of the backbone's first layers.
        tables: Embedding name to run folder of phase 1 (its item table),
            to ``'features:<modality>'``, or to ``'random:<width>'``.
        train_tables: Names of ``tables`` that are trained on.
        token: Names of ``tables`` that make up an item's soft token.
        projector_layers: Layers between an item's embeddings and its token.
        candidates: What competes in the loss: ``'all'`` items, or the ``'unseen'``.
        scope: ``'user'`` (a row a history) or ``'causal'`` (all positions).
        prefix: Arguments of ``GraphPrefix`` beside the name of the table that
            is pooled (``embedding``); :obj:`None` for no prefix.
        dropout: Dropout on the item tokens.
        head: ``'linear'``, ``'tied'`` or ``'frozen_random'``.
        head_channels: Width of a tied head's adapter; :obj:`None` for none.
        lora: Arguments of ``peft.LoraConfig``; :obj:`None` freezes the LLM.
        load_in_4bit: Quantise the backbone (needs bitsandbytes and CUDA).
        instruction: Text before the items; :obj:`None` for the default.
        response: Text after the items (user scope); :obj:`None` for the
            default.
        second_bos: Start the response piece with another BOS token.
    """

    name: str = 'SmolLM2-135M-Instruct'
    num_layers: int | None = None
    tables: dict[str, str] = field(default_factory=dict)
    train_tables: list[str] = field(default_factory=list)
    token: list[str] = field(default_factory=lambda: ['graph', 'seq'])
    projector_layers: int = 2
    candidates: Literal['all', 'unseen'] = 'all'
    scope: Literal['user', 'causal'] = 'causal'
    prefix: dict[str, Any] | None = None
    dropout: float = 0.0
    head: Literal['linear', 'tied', 'frozen_random'] = 'linear'
    head_channels: int | None = None
    lora: dict[str, Any] | None = field(
        default_factory=lambda: {
            'r': 16,
            'lora_alpha': 16,
            'lora_dropout': 0.05,
            'target_modules': ['gate_proj', 'up_proj', 'down_proj'],
        }
    )
    load_in_4bit: bool = False
    instruction: str | None = None
    response: str | None = None
    second_bos: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of either phase.

    Args:
        epochs: Largest number of epochs.
        batch_size: Rows of a batch.
        batch_tokens: Bound on rows times longest row instead (sequences).
        lr: Learning rate.
        optimizer: ``'adam'`` or ``'adamw'``.
        betas: Moment decay rates.
        weight_decay: Decoupled (adamw) or L2 (adam) weight decay.
        decay: ``'matrices'`` spares norms and biases, ``'all'`` does not.
        schedule: ``'constant'``, ``'linear'``, ``'cosine'`` (per step, after
            the warm-up) or ``'exponential'`` (0.96^(epoch/50)).
        min_lr: Floor of the cosine schedule.
        warmup_epochs: Linear warm-up from zero.
        clip: Largest gradient norm; :obj:`None` clips nothing.
        accumulate: Batches to a step.
        precision: ``'fp32'`` or ``'bf16'`` (autocast).
        activation_checkpointing: Recompute the LLM's layers in backward.
        sampling: Positives of pairs: ``'user'`` or ``'interaction'``.
        targets: ``'all'`` positions of a sequence or the ``'last'``.
        num_neg: Sampled negatives of a target.
        max_len: Longest history.
        eval_every: Epochs between validations.
        patience: Validations without improvement before the stop.
        metric: The metric, on validation, that chooses the weights.
        save_minutes: Minutes between resumable states.
        seed: Seed of initialisation, order, negatives and dropout.
    """

    epochs: int = 100
    batch_size: int = 1024
    batch_tokens: int | None = None
    lr: float = 1e-3
    optimizer: Literal['adam', 'adamw'] = 'adam'
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decay: Literal['matrices', 'all'] = 'matrices'
    schedule: Literal['constant', 'linear', 'cosine', 'exponential'] = 'constant'
    min_lr: float = 0.0
    warmup_epochs: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    precision: Literal['fp32', 'bf16'] = 'fp32'
    activation_checkpointing: bool = False
    sampling: Literal['user', 'interaction'] = 'user'
    targets: Literal['all', 'last'] = 'all'
    num_neg: int = 1
    max_len: int = 50
    eval_every: int = 1
    patience: int = 10
    metric: str = 'N@10'
    save_minutes: float = 5.0
    seed: int = 2024

    def __post_init__(self) -> None:
        _at_least(1, self, 'batch_size', 'accumulate', 'max_len', 'eval_every')
        _at_least(0, self, 'epochs', 'lr', 'weight_decay', 'num_neg', 'patience')
        _at_least(0, self, 'min_lr', 'warmup_epochs', 'save_minutes', 'seed')
        if self.clip is not None and not self.clip > 0:  # else it turns gradients
            raise ValueError(f"'clip' needs to be above 0 or null (got {self.clip})")


@dataclass(frozen=True)
class EvalConfig:
    """How models are ranked and scored.

    Args:
        ks: Cut-offs.
        batch_size: Users scored at once.
        history: ``'train+val'`` or ``'train'``: what is read at test.
        mask: ``'seen'``, ``'train'`` or ``'none'``: what is not ranked.
    """

    ks: tuple[int, ...] = (10, 20)
    batch_size: int = 512
    history: Literal['train+val', 'train'] = 'train+val'
    mask: Literal['seen', 'train', 'none'] = 'seen'

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"'ks' needs to hold positive cut-offs (got {self.ks})")
        _at_least(1, self, 'batch_size')


@dataclass(frozen=True)
class Config:
    """One experiment.

    Args:
        data: The interactions and the graph.
        model: ``name`` of a class in ``hellm_pyg.nn.models`` beside the
            arguments of its constructor; empty for phase 2.
        llm: The language-model phase; :obj:`None` for phase 1.
        train: Optimisation.
        eval: Protocol of the reported numbers.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)
    llm: LLMConfig | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


_EXPECTED = {int: 'an integer', float: 'a number', bool: 'true or false', str: 'text'}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 that reads ``1e-3`` as a number, as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """Quotes the text that :class:`_Loader` would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        'tag:yaml.org,2002:float',
        re.compile(r'^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
        list('-+.0123456789'),
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known name that is closest to a mistyped one, in any case."""
    lowered = {one.lower(): one for one in known}
    return lowered[difflib.get_close_matches(name.lower(), lowered, 1, cutoff=0.0)[0]]


def _expected(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return 'one of ' + ', '.join(repr(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return ' or '.join(_expected(arg) for arg in args)
    if annotation is type(None):
        return 'null'
    if origin is dict or dataclasses.is_dataclass(annotation):
        return 'a mapping'
    if origin in (list, tuple):
        return 'a list of ' + ', '.join(_expected(a) for a in args if a is not ...)
    return _EXPECTED.get(annotation, str(annotation))


def parse(value: Any, annotation: Any, key: str, source: str) -> Any:
    """Checks a plain value against a type and returns it in that type.

    Integers pass for floats and lists for tuples; nothing else is converted.

    Args:
        value: What YAML gave.
        annotation: A dataclass, a builtin, a :obj:`Literal`, an optional, a
            list, tuple or dict. Other types are not checked.
        key: Dotted name, for the message.
        source: Where the value stands, for the message.

    Raises:
        ValueError: If a key is unknown or a value has another type.
    """
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (Union, types.UnionType):
        return _parse_union(value, annotation, key, source)
    if origin is Literal:
        fits = any(type(value) is type(arg) and value == arg for arg in args)
    elif origin in (list, tuple):
        fits = isinstance(value, list | tuple)
        kinds = args if origin is tuple and ... not in args else None
        if fits and (kinds is None or len(kinds) == len(value)):
            kinds = kinds or (args[:1] or (Any,)) * len(value)
            pairs = enumerate(zip(value, kinds, strict=True))
            value = origin(parse(v, t, f'{key}[{i}]', source) for i, (v, t) in pairs)
        else:
            fits = False
    elif origin is dict:
        fits = isinstance(value, dict)
        if fits and args:
            items = value.items()
            value = {k: parse(v, args[1], f'{key}.{k}', source) for k, v in items}
    elif origin is float:
        fits = type(value) in (int, float)
        value = float(value) if fits else value
    elif dataclasses.is_dataclass(origin):
        fits = isinstance(value, dict)
        value = _parse_section(value, origin, key, source) if fits else value
    else:
        fits = origin not in (int, bool, str, type(None)) or type(value) is origin
    if not fits:
        raise ValueError(
            f"'{key}' in {source} needs to be {_expected(annotation)} (got {value!r})"
        )
    return value


def _parse_union(value: Any, annotation: Any, key: str, source: str) -> Any:
    for arg in get_args(annotation):
        if dataclasses.is_dataclass(arg) and isinstance(value, dict):
            return parse(value, arg, key, source)
        try:
            return parse(value, arg, key, source)
        except ValueError:
            continue
    raise ValueError(
        f"'{key}' in {source} needs to be {_expected(annotation)} (got {value!r})"
    )


def _parse_section(value: dict, section: Any, key: str, source: str) -> Any:
    hints = get_type_hints(section)
    dotted = {name: f'{key}.{name}' if key else name for name in hints}
    parsed = {}
    for name, entry in value.items():
        if name not in hints:
            known = dotted if key else {**_leaves(), **dotted}
            found = known[nearest(str(name), known)]
            raise ValueError(
                f"unknown key '{f'{key}.{name}' if key else name}' in {source}; "
                f"the nearest known key is '{found}'"
            )
        parsed[name] = parse(entry, hints[name], dotted[name], source)
    try:
        return section(**parsed)
    except ValueError as error:
        raise ValueError(f"'{key}' in {source}: {error}") from None


def _leaves() -> dict[str, str]:
    # Of keys that two sections have, the last one's is meant.
    sections = {'eval': EvalConfig, 'llm': LLMConfig}
    sections |= {'data': DataConfig, 'train': TrainConfig}
    return {
        name: f'{key}.{name}'
        for key, section in sections.items()
        for name in get_type_hints(section)
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
        raise ValueError(f'{path} is not YAML: {error}') from None
    if not isinstance(raw, dict):
        raise ValueError(f'{path} needs to hold sections of keys (got {raw!r})')
    return raw, path.name


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
    except yaml.YAMLError:
        raise ValueError(f'the override {override!r} is not YAML') from None
    parse(_assign({}, names, value), Config, '', f'the override {override!r}')
    if names == ['model', 'name'] and raw.get('model', {}).get('name') != value:
        return {**raw, 'model': {'name': value}}
    return _assign(raw, names, value)


def _assign(section: dict, names: Sequence[str], value: Any) -> dict:
    name, *rest = names
    if rest:
        value = _assign(section.get(name) or {}, rest, value)
    return {**section, name: value}


def load_config(
    recipe: str | Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Reads a recipe and applies overrides to it.

    A recipe may have a section ``datasets`` of named partial recipes; the
    override ``dataset=<name>`` lays one of them over the rest. Overriding
    ``model.name`` by another class drops the recipe's arguments of the former one.

    Args:
        recipe: File or name of a packaged recipe; :obj:`None` starts from the
            defaults.
        overrides: Assignments ``a.b=c``; the value is read as YAML.

    Raises:
        ValueError: If a key is unknown (names the nearest one), or a value has
            the wrong type.
    """
    raw, source = ({}, 'the defaults') if recipe is None else _read(recipe)
    datasets = raw.pop('datasets', {})
    for override in overrides:
        if override.startswith('dataset='):
            name = override.removeprefix('dataset=')
            if name not in datasets:
                known = ', '.join(datasets) or 'none'
                raise ValueError(
                    f"'dataset' needs to be a section of 'datasets' in {source}: "
                    f'{known} (got {name!r})'
                )
            parse(datasets[name], Config, '', f"{source}, 'datasets.{name}'")
            raw = _merge(raw, datasets[name])
    parse(raw, Config, '', source)
    # First the class: setting it drops the arguments of the former one.
    for override in sorted(overrides, key=lambda o: not o.startswith('model.name=')):
        if not override.startswith('dataset='):
            raw = _override(raw, override)
    return parse(raw, Config, '', source)


def to_dict(config: Config) -> dict[str, Any]:
    """Returns a configuration as nested plain values (tuples as lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def save_config(config: Config, path: str | Path) -> None:
    """Writes a configuration as YAML; :func:`load_config` reads it back."""
    from hellm_pyg.checkpoint import atomic  # torch is slow to import

    values = to_dict(config)
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    with atomic(path) as temporary:
        Path(temporary).write_text(text, encoding='utf-8')
