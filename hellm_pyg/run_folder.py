"""The model in the folder of a run, which may be an ensemble of others' copies."""

from __future__ import annotations

import filecmp
import inspect
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch_geometric.data import HeteroData

from hellm_pyg import checkpoint
from hellm_pyg.assembly import (
    build_model,
    check_catalogue,
    model_class,
    sampling_of,
)
from hellm_pyg.config import Config, load_run_config, save_config, to_dict
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.held_out import check_held_out

CONFIG, IDS, METRICS = 'config.yaml', 'ids.json', 'metrics.json'
WEIGHTS, LLM_FOLDER, MEMBERS = 'model.safetensors', 'model', 'members'
LOCK = '.lock'
STATES = ('state', '.state.old')  # the second one while the first is swapped
# Of a training's settings, what it reads and its state does not hold.
READ = ('tables', 'backbone', 'refit', 'teachers')
# What may be another one in a run that goes on.
FREE = ('train.save_minutes', 'eval.batch_size', 'data.root')
# Of the data, what a member that reads features shares with its ensemble.
KNN_KEYS = ('knn', 'knn_direction', 'knn_index')
# Where data lie, which may move.
FILES = ('data.root', 'data.interactions', 'data.items', 'data.features.')

logger = logging.getLogger(__name__)


@contextmanager
def claim(run_dir: Path, config: Config, main: bool) -> Iterator[None]:
    """Holds a run folder, which is of this configuration, against other processes.

    A folder without any state, of a run that failed at once, is there to be used.

    Args:
        run_dir: The folder.
        config: The configuration, which is written into a new folder.
        main: Whether to hold and write; of several processes the main one does.

    Raises:
        ValueError: If the folder holds a run of another configuration, is in use by
            another run, or cannot be written to.
    """
    if not main:
        check_config(run_dir, config, moved=True)
        yield
        return
    with ExitStack() as stack:
        try:  # the system frees the lock when the process ends, however it does
            run_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(run_dir / LOCK, timeout=0))
        except Timeout as error:
            raise ValueError(
                f"'{run_dir}' is in use by another run: wait until it ends, or choose "
                f'another folder'
            ) from error
        except OSError as error:
            if not (run_dir / METRICS).is_file():  # else it is finished, and read alone
                raise ValueError(
                    f"'{run_dir}' needs to be a folder that can be written to (got "
                    f'{error}): choose another one'
                ) from error
        if not check_config(run_dir, config, moved=True):
            save_config(config, run_dir / CONFIG)
        yield


def check_config(run_dir: Path, config: Config, moved: bool = False) -> bool:
    """Whether a folder holds a run, which is to be of this configuration.

    Args:
        run_dir: The folder.
        config: The configuration.
        moved: Whether files may lie elsewhere, as their content is compared later.

    Raises:
        ValueError: If it is of another one.
    """
    path = run_dir / CONFIG
    begun = any((run_dir / name).exists() for name in (*STATES, METRICS))
    if not (path.is_file() and begun):
        return False
    for key, (old, new) in differing(load_run_config(path), config).items():
        if key not in FREE and not (moved and _has_moved(key, old, new, config)):
            raise ValueError(
                f"'{run_dir}' holds a run of another configuration: '{key}' is "
                f'{old!r} there (got {new!r}); choose another folder or remove this one'
            )
    return True


def _has_moved(key: str, old: Any, new: Any, config: Config) -> bool:
    """Whether a training compares the content of what lies elsewhere now."""
    from hellm_pyg.training.state import CONTENT, are_paths

    if not (key.startswith((*FILES, *CONTENT)) and are_paths(old, new)):
        return False
    if config.llm is None or config.llm.smoothing is None:
        return True
    # What smoothing alone reads is not among the tables of the model.
    own = config.llm.smoothing.embedding
    return key != f'llm.tables.{own}' or own in config.llm.token


def differing(former: Config, config: Config) -> dict[str, tuple[Any, Any]]:
    """The keys of two configurations that differ, with both values."""
    old, new = _choices(former), _choices(config)
    pairs = {key: (old.get(key), new.get(key)) for key in sorted({*old, *new})}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def _choices(config: Config) -> dict[str, Any]:
    """All keys and values, and of an ensemble which member is the first."""
    flat = _flat(to_dict(config))
    if config.ensemble is not None:
        flat['ensemble.members'] = list(config.ensemble.members)
    return flat


def _flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:  # empty it is not null
            flat |= _flat(value, f'{prefix}{key}.')
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def is_without_state(folder: Path) -> bool:
    """Whether a run has ended and what it would go on from is gone."""
    states = [folder / name for name in STATES]
    return (folder / METRICS).is_file() and not any(map(Path.exists, states))


def check_finished(folder: Path, key: str = 'run') -> None:
    """Refuses a folder that is none of a run, or of one that has not ended.

    Raises:
        ValueError: If a file is missing.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"'{key}' needs to be the folder of a run (got '{folder}', without "
            f"'{CONFIG}')"
        )
    if not (folder / METRICS).is_file():
        raise ValueError(
            f"'{key}' needs to be the folder of a finished run (got '{folder}', which "
            f'is not trained to its end: the command that began it goes on)'
        )


def read_metrics(folder: Path) -> dict[str, Any]:
    """Returns what a run has measured, and its settings.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / METRICS
    # Models without anything to train have no settings of a training.
    metrics = {'settings': {}, **checkpoint.load_json(path, dict)}
    checkpoint.check_entries(path, metrics, {'metrics': dict, 'settings': dict})
    return metrics


def check_data(folder: Path, data: HeteroData, ids: IdMap) -> None:
    """Refuses data of other users or items, and warns of other interactions.

    Raises:
        ValueError: If the id maps differ or a file is damaged.
    """
    check_catalogue(folder, ids)
    if _changed(folder, data):
        logger.warning(
            '%s: the interactions or features have changed since it was trained; its '
            'users and items are the same',
            folder,
        )


def check_unchanged(folder: Path, data: HeteroData, features: bool = True) -> None:
    """Refuses interactions that are not those that a run was trained on.

    Args:
        folder: The run.
        data: The data.
        features: Whether features are to be the same, too.

    Raises:
        ValueError: If they have changed.
    """
    if _changed(folder, data, features):
        raise ValueError(
            f"'{folder}' was trained on other interactions{' or features' * features} "
            f'of the same users and items: train it again on these data'
        )


def check_read(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses another backbone, tables or teachers than a run was trained with.

    Args:
        folder: The run.
        settings: Those that it would be trained with now, as far as known.

    Raises:
        ValueError: If some differ; names them.
    """
    former = read_metrics(folder)['settings']
    told = [key for key in READ if key in former and key in settings]
    changed = [key for key in told if former[key] != settings[key]]
    if changed:
        raise ValueError(
            f"'{folder}' was trained with other {', '.join(changed)} than are there "
            f'now: remove it to train it again, or choose another folder'
        )


def _changed(folder: Path, data: HeteroData, features: bool = True) -> bool:
    found = read_metrics(folder)
    pairs = [(found.get('split_fingerprint'), data.split_fingerprint)]
    if features:
        pairs.append((found['settings'].get('data'), data.fingerprint))
    return any(old not in (None, new) for old, new in pairs)


def load_model(folder: Path, config: Config, data: HeteroData, ids: IdMap) -> Any:
    """Loads the model of a finished run.

    Args:
        folder: The run.
        config: Its configuration.
        data: The data that it was trained on.
        ids: Their id map.

    Raises:
        ValueError: If a file is damaged or does not fit.
    """
    if config.ensemble is not None:
        from hellm_pyg.nn.models import Ensemble

        kinds = dict.fromkeys(config.ensemble.members, int | float)
        weights = checkpoint.load_json(folder / METRICS, {'weights': kinds})['weights']
        return Ensemble(
            load_members(copies(folder, config), config, data, ids), weights
        )
    if config.llm is not None:
        from hellm_pyg.llm.recommender import LLMRecommender

        return LLMRecommender.from_pretrained(
            folder / LLM_FOLDER, fingerprint=ids.fingerprint
        )
    model: Any = build_model(config, data)
    expected = model.state_dict()
    if sampling_of(model) == 'none':  # how much it has counted these data do not tell
        state = checkpoint.load_tensors(folder / WEIGHTS)
        checkpoint.check_names(state, expected, f"'{folder / WEIGHTS}'")
    else:
        state = checkpoint.load_tensors(folder / WEIGHTS, expected)
    model.load_state_dict(state)
    return model


def load_members(
    folders: Mapping[str, str],
    config: Config,
    data: HeteroData,
    ids: IdMap,
    key: str = 'ensemble.members',
) -> dict[str, Any]:
    """Loads finished runs that another one reads whole, in evaluation mode.

    Args:
        folders: Name to folder of a finished run.
        config: The configuration of the run that reads them.
        data: Its data, which all of them read.
        ids: Their id map.
        key: Where the configuration names them.

    Raises:
        ValueError: If there are none, a folder has no finished run or one of another
            catalogue, of data that are split or linked in another way, of longer or
            shorter histories, or an ensemble itself.
    """
    if not folders:
        raise ValueError(
            f"'{key}' needs a run at least, as in {key}.graph=runs/graph (got none)"
        )
    members = {}
    for name, path in folders.items():
        own_key, folder = f'{key}.{name}', Path(path)
        if re.fullmatch(r'\w[\w.-]*', name) is None:
            raise ValueError(
                f"'{key}' needs names of letters, digits, '_', '-' and '.' "
                f'(got {name!r})'
            )
        try:
            check_finished(folder, own_key)
        except ValueError as error:
            raise ValueError(
                f"{error}. '{key}={{{name}: ..., ...}}' replaces all that a recipe "
                f"names, '{own_key}=...' this one"
            ) from None
        own = load_run_config(folder / CONFIG)
        if own.ensemble is not None:
            raise ValueError(
                f"'{own_key}' needs to be a run that is no ensemble itself (got "
                f"'{folder}'): take its members, {', '.join(own.ensemble.members)}"
            )
        try:
            check_data(folder, data, ids)
            _check_same(own, config)
            members[name] = load_model(folder, own, data, ids).eval()
        except ValueError as error:
            raise ValueError(f"'{own_key}' cannot be taken: {error}") from error
    return members


def check_members(
    folders: Mapping[str, str], data: HeteroData, key: str = 'ensemble.members'
) -> None:
    """Refuses runs that were trained on other data than those at hand.

    Args:
        folders: Name to folder, as of :func:`load_members`.
        data: The data.
        key: Where the configuration names them.

    Raises:
        ValueError: If a member's interactions have changed, or the features it reads.
    """
    for name, path in folders.items():
        own = load_run_config(Path(path) / CONFIG)
        try:
            check_unchanged(Path(path), data, _reads_features(own))
        except ValueError as error:
            raise ValueError(f"'{key}.{name}' cannot be taken: {error}") from error


def with_graph_of(folders: Mapping[str, str], config: Config) -> Config:
    """Returns an ensemble's configuration with the neighbours of its members.

    Those of the first member that reads features are taken; the others are to agree.
    """
    for path in folders.values():
        if not (Path(path) / CONFIG).is_file():
            continue
        own = load_run_config(Path(path) / CONFIG)
        if own.ensemble is None and _reads_features(own):
            knn = {key: getattr(own.data, key) for key in KNN_KEYS}
            return replace(config, data=replace(config.data, **knn))
    return config


def _model_class(config: Config) -> Any:
    return model_class(config.model.get('name'))


def _reads_features(config: Config) -> bool:
    """Whether the model of a run, once trained, reads features and their neighbours."""
    if config.llm is not None or sampling_of(_model_class(config)) == 'sequences':
        return False  # it has its own tables
    arguments = inspect.signature(_model_class(config)).parameters
    return 'feature_dims' in arguments or 'modalities' in arguments


def _check_same(own: Config, config: Config) -> None:
    """Refuses a run that would read other data here than it was trained on."""
    if own.train.split != config.train.split:
        raise ValueError(
            f"it was trained with 'train.split' {own.train.split!r} (got "
            f'{config.train.split!r} here): both need the same, so that what is held '
            f'out of one is held out of the other'
        )
    check_held_out(own, config)
    for key in ('features', *KNN_KEYS) if _reads_features(own) else ():
        old, new = getattr(own.data, key), getattr(config.data, key)
        if key == 'features':  # the files may have moved
            old, new = sorted(old), sorted(new)
        if old != new:
            raise ValueError(
                f"it was trained with 'data.{key}' {old!r} (got {new!r} here), and "
                f'reads it here, too: set the same, or train it anew'
            )
    histories = own.llm is not None or sampling_of(_model_class(own)) != 'pairs'
    if histories and own.train.max_len != config.train.max_len:
        raise ValueError(
            f"it reads histories of {own.train.max_len} items (got 'train.max_len' "
            f'{config.train.max_len} here): both read the same'
        )


def copy_members(folders: Mapping[str, str], run_dir: Path) -> None:
    """Copies what :func:`load_members` reads into the folder of the ensemble."""
    with checkpoint.atomic_folder(run_dir / MEMBERS) as members:
        for name, folder in folders.items():
            (members / name).mkdir()
            for file in (CONFIG, IDS, METRICS, WEIGHTS):
                if (Path(folder) / file).is_file():
                    shutil.copyfile(Path(folder) / file, members / name / file)
            if (Path(folder) / LLM_FOLDER).is_dir():
                shutil.copytree(Path(folder) / LLM_FOLDER, members / name / LLM_FOLDER)


def copies(run_dir: Path, config: Config) -> dict[str, str]:
    """The folders of the members' copies, by name."""
    members = () if config.ensemble is None else config.ensemble.members
    return {name: str(run_dir / MEMBERS / name) for name in members}


def changed_members(folders: Mapping[str, str], run_dir: Path) -> list[str]:
    """The members whose folders hold another run than when they were copied."""
    pairs = {
        name: (Path(folder) / METRICS, run_dir / MEMBERS / name / METRICS)
        for name, folder in folders.items()
    }
    return [
        name
        for name, (now, then) in pairs.items()
        if now.is_file() and then.is_file() and not filecmp.cmp(now, then, False)
    ]
