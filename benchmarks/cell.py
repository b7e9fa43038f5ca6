"""One cell: trained, measured on test, written down."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import Cell
from hellm_pyg import experiment
from hellm_pyg.assembly import build_data
from hellm_pyg.checkpoint import load_json, save_json
from hellm_pyg.config import Config, load_config, parse, to_dict
from hellm_pyg.training.record import commit, peak_memory, versions

LAST_RANK = 1000


def run_cell(cell: Cell, protocols: list[list[str]], path: Path) -> None:
    """Trains a cell to its end, reads the test items, writes the result."""
    config = load_config(cell.recipe, cell.overrides)
    train = experiment.pretrain if config.llm is None else experiment.finetune
    began = time.perf_counter()
    train(config, cell.run_dir)
    fitting = time.perf_counter() - began
    test, ranks = {}, {}
    for history, mask in protocols:
        overrides = [f'eval.history={history}', f'eval.mask={mask}']
        result = experiment.evaluate_run(cell.run_dir, 'test', overrides)
        test[str(result.protocol)] = result.to_dict()
        ranks[str(result.protocol)] = compact(result.rank)
    metrics = load_json(Path(cell.run_dir) / 'metrics.json')
    settings = metrics.pop('settings', {})
    # What was trained in parts has added them up.
    training = metrics['seconds'] if 'curve' in metrics else fitting
    evaluation = sum(result['seconds'] for result in test.values())
    device = torch.device(metrics.get('device', 'cpu'))
    save_json(
        path,
        {
            **cell._asdict(),
            'command': command(cell, config),
            'commit': commit(),
            'versions': versions(),
            'config': to_dict(config),
            'data_fingerprint': build_data(config.data)[0].fingerprint,
            'backbone': config.llm and _label(config.llm.name),
            'parameters': metrics.get('parameters', 0),
            'trained_parameters': settings.get('trained_parameters', 0),
            'seconds': {'training': training, 'evaluation': evaluation},
            'peak_memory_bytes': peak_memory(device),
            'validation': metrics,
            'test': test,
            'ranks': ranks,
        },
    )


def command(cell: Cell, config: Config | None = None) -> str:
    """What trains the cell by itself."""
    phase = 'finetune' if config is not None and config.llm is not None else 'pretrain'
    overrides = ' '.join(cell.overrides)
    return f'hellm {phase} {cell.recipe} {overrides} --out {cell.run_dir}'


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


def finished(cell: Cell, path: Path) -> bool:
    """Whether the result is there, and of this very configuration."""
    if not path.is_file():
        return False
    result = json.loads(path.read_text())
    if 'config' not in result:
        wanted = (cell.recipe, cell.overrides)
        return (result['recipe'], result['overrides']) == wanted
    try:
        found: Config = parse(result['config'], Config, '', path.name)
    except ValueError:  # a key that has gone since
        return False
    return _choices(found) == _choices(load_config(cell.recipe, cell.overrides))


def _choices(config: Config) -> dict[str, Any]:
    train = dataclasses.replace(config.train, save_minutes=0.0)
    return to_dict(dataclasses.replace(config, train=train))


def _label(name: str) -> str:
    from hellm_pyg.llm import backbone_label

    return backbone_label(name)
