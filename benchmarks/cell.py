"""One cell: trained, measured on test, written down."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import shlex
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import Cell
from hellm_pyg import experiment
from hellm_pyg.assembly import build_data, default_arguments
from hellm_pyg.checkpoint import check_entries, load_json, save_json
from hellm_pyg.config import Config, load_config, load_run_config, parse, to_dict
from hellm_pyg.evaluation import Protocol
from hellm_pyg.run_folder import LLM_FOLDER, MEMBERS, WEIGHTS, changed_members
from hellm_pyg.training.record import commit, peak_memory, versions

LAST_RANK = 1000


def run_cell(cell: Cell, protocols: list[list[str]], path: Path) -> None:
    """Trains a cell to its end, reads the test items, writes the result.

    A former result of the same metrics stays, so that the results made from a run that
    was lost count when it has been trained again: ranks beyond the metrics may differ.
    """
    config = load_config(cell.recipe, cell.overrides)
    train = getattr(experiment, phase(config))
    _check_members(cell, config)
    began = time.perf_counter()
    train(config, cell.run_dir)
    fitting = time.perf_counter() - began
    tested = []
    if protocols:
        asked = [Protocol(*protocol) for protocol in protocols]  # type: ignore[arg-type]
        tested = experiment.evaluate_run_protocols(cell.run_dir, asked)
    test = {str(result.protocol): result.to_dict() for result in tested}
    ranks = {str(result.protocol): compact(result.rank) for result in tested}
    # Protocols of one history are ranked at once.
    passes = {result.protocol.history: result.seconds for result in tested}
    metrics = load_json(Path(cell.run_dir) / 'metrics.json', dict)
    settings = metrics.pop('settings', {})
    # What was trained in parts has added them up.
    added = 'curve' in metrics or config.ensemble is not None
    training = metrics['seconds'] if added else fitting
    training += sum(m['seconds'] for m in metrics.get('members', {}).values())
    device = metrics.get('device', 'cpu')
    former = load_json(path, dict) if path.is_file() else {}
    data, _ = build_data(config.data)
    validated = data['user'].val_item >= 0
    if 'sample_mask' in data['user']:
        validated &= data['user'].sample_mask
    found = {
        **cell._asdict(),
        'command': command(cell, config),
        'commit': commit(),
        'versions': versions(),
        'config': to_dict(config),
        'read': {key: digest(path.parent / f'{key}.json') for key in cell.sources},
        'data_fingerprint': data.fingerprint,
        'split_fingerprint': data.split_fingerprint,
        'backbone': _backbone(config),
        'parameters': metrics.get('parameters', 0),
        'trained_parameters': settings.get('trained_parameters', 0),
        'model_bytes': model_bytes(Path(cell.run_dir)),
        'validation_users': int(validated.sum()),
        'device': device,
        'threads': torch.get_num_threads(),
        'seconds': {'training': training, 'evaluation': sum(passes.values())},
        'peak_memory_bytes': peak_memory(torch.device(device)),
        'validation': metrics,
        'test_reads': former.get('test_reads', bool(former.get('test'))) + bool(test),
        'test': test,
        'ranks': ranks,
    }
    if not (finished(cell, protocols, path) and _stays(path, found)):
        save_json(path, found)


def _stays(path: Path, found: Mapping[str, Any]) -> bool:
    """Whether a former result of the same data has the same metrics."""
    former = load_json(path, dict)
    measured = found['validation'].get('metrics') or found['test']
    same = _findings(former) == _findings(found)
    return 'config' in former and bool(measured) and same


def _findings(result: Mapping[str, Any]) -> list[Any]:
    """What was read and what came out, all of it but ranks."""
    validation, test = result.get('validation', {}), result.get('test', {})
    metrics = {protocol: values.get('metrics') for protocol, values in test.items()}
    chosen = [validation.get(key) for key in ('metrics', 'best_epoch', 'weights')]
    data = result.get('data_fingerprint')
    return [data, result.get('read', {}), *chosen, metrics]


def _check_members(cell: Cell, config: Config) -> None:
    """Refuses a finished ensemble of members that have been trained anew since.

    Raises:
        ValueError: If there is one.
    """
    run_dir = Path(cell.run_dir)
    if config.ensemble is None or not (run_dir / 'metrics.json').is_file():
        return
    if changed := changed_members(config.ensemble.members, run_dir):
        raise ValueError(
            f"'{run_dir}' holds an ensemble of former runs of {changed}: remove it, "
            f'and run the cell again'
        )


def model_bytes(run_dir: Path) -> int:
    """Size of the files that a model is loaded from, but for a frozen backbone."""
    weights = (WEIGHTS, f'{LLM_FOLDER}/*.safetensors', f'{MEMBERS}/**/*.safetensors')
    return sum(path.stat().st_size for w in weights for path in run_dir.glob(w))


def command(cell: Cell, config: Config) -> str:
    """What trains the cell by itself, as a shell reads it."""
    recipe, overrides = str(cell.recipe), cell.overrides
    words = ['hellm', phase(config), recipe, *overrides, '--out', str(cell.run_dir)]
    return shlex.join(words)


def phase(config: Config) -> str:
    """The command, and the function of :mod:`hellm_pyg.experiment`, that trains it."""
    if config.ensemble is not None:
        return 'ensemble'
    return 'pretrain' if config.llm is None else 'finetune'


def compact(rank: Tensor) -> dict[str, str]:
    """Packs the ranks of all users with a test item, in their order.

    No metric reads what lies beyond :data:`LAST_RANK`.
    """
    doubled = (2 * rank.clamp(max=LAST_RANK)).round().int().numpy().astype('<u2')
    return {
        'encoding': 'zlib, base64, little-endian uint16 of twice the rank, which is '
        f'at most {LAST_RANK}',
        'data': base64.b64encode(zlib.compress(doubled.tobytes(), 9)).decode(),
    }


def up_to_date(
    cell: Cell, table: Mapping[str, Cell], protocols: list[list[str]], folder: Path
) -> bool:
    """Whether a cell is :func:`finished`, and so are the very results that it read.

    Args:
        cell: The cell.
        table: All cells of its table by their keys.
        protocols: Those of the table.
        folder: Where the results lie.

    Raises:
        ValueError: If a file is damaged.
    """
    path = folder / f'{cell.key}.json'
    if not finished(cell, protocols, path):
        return False
    read = load_json(path, dict).get('read', {})
    return all(
        source in table
        and up_to_date(table[source], table, protocols, folder)
        and read.get(source) == digest(folder / f'{source}.json')
        for source in cell.sources
    )


def superseded(cell: Cell, folder: Path) -> bool:
    """Whether its run, shared with another table, was trained again and came out anew.

    Raises:
        ValueError: If a file is damaged.
    """
    run, path = Path(cell.run_dir) / 'metrics.json', folder / f'{cell.key}.json'
    if not run.is_file() or not path.is_file():
        return False
    found = load_json(path, dict).get('validation', {}).get('metrics')
    return load_json(run, dict).get('metrics') != found


def lost_sources(cell: Cell, table: Mapping[str, Cell]) -> set[str]:
    """Keys of the cells that a cell reads, and they in turn, whose runs have gone."""
    lost = set()
    for key in cell.sources:
        if key in table and not (Path(table[key].run_dir) / 'metrics.json').is_file():
            lost |= {key} | lost_sources(table[key], table)
    return lost


def finished(cell: Cell, protocols: list[list[str]], path: Path) -> bool:
    """Whether the result is there, of this very configuration and these protocols.

    What a configuration leaves out of the section ``model`` is what the class has as
    its default now. A result without a configuration is known by its overrides alone.

    Raises:
        ValueError: If the file is damaged, or there is no such model.
    """
    if not path.is_file():
        return False
    result = load_json(path, dict)
    if 'config' not in result:
        check_entries(path, result, {'recipe': str, 'overrides': list})
        wanted = (cell.recipe, cell.overrides)
        return (result['recipe'], result['overrides']) == wanted
    try:
        found = _choices(parse(result['config'], Config, '', path.name))
    except ValueError:  # a key or a model that has gone since
        return False
    check_entries(path, result, {'test': dict})
    asked = {str(Protocol(history, mask)) for history, mask in protocols}  # type: ignore[arg-type]
    own = load_config(cell.recipe, cell.overrides)
    return set(result['test']) == asked and found == _choices(own)


def digest(path: Path) -> str | None:
    """What the run of a result has found, in short; :obj:`None` without a result."""
    if not path.is_file():
        return None
    result = load_json(path, dict)
    found = [result.get('validation', {}).get('metrics'), result.get('ranks')]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _choices(config: Config) -> tuple[dict[str, Any], list[str]]:
    """All values, those left to the model, too, and an ensemble's members in order.

    The number format is not among them: it may be what the machine has.
    """
    train = dataclasses.replace(config.train, save_minutes=0.0, precision='auto')
    model = config.model
    if 'name' in model:
        model = {**default_arguments(config), **model}
    members = [] if config.ensemble is None else list(config.ensemble.members)
    return to_dict(dataclasses.replace(config, train=train, model=model)), members


def _backbone(config: Config) -> str | None:
    """The language model, which may be that of an ensemble's member."""
    if config.ensemble is not None:
        folders = config.ensemble.members.values()
        found = [_backbone(load_run_config(Path(f) / 'config.yaml')) for f in folders]
        return ', '.join(dict.fromkeys(name for name in found if name)) or None
    if config.llm is None:
        return None
    from hellm_pyg.llm import backbone_label

    llm = config.llm
    return backbone_label(llm.name, llm.weights == 'random', llm.shape)
