"""What a finished run leaves behind: the model and where its numbers come from."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import save_tensors
from hellm_pyg.config import EvalConfig, TrainConfig
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.training.record import commit, peak_memory, versions
from hellm_pyg.training.state import Progress


def summary(
    state: Progress,
    config: TrainConfig,
    evaluation: EvalConfig,
    settings: Mapping[str, Any],
    model: torch.nn.Module,
    data: HeteroData,
    device: torch.device,
) -> dict[str, Any]:
    """Returns the content of ``metrics.json``."""
    curve = state.curve
    return {
        'metrics': state.best_metrics,
        'protocol': {
            'split': 'val',
            'history': evaluation.history,
            'mask': evaluation.mask,
        },
        'selection': config.metric,
        'best_epoch': state.best_epoch,
        'epochs': state.epoch,
        'stopped': state.stopped,
        'seconds_per_epoch': statistics.median(r['seconds'] for r in curve),
        'seconds': round(sum(r['seconds'] + r['eval_seconds'] for r in curve), 3),
        'peak_memory_bytes': peak_memory(device),
        'device': str(device),
        'threads': torch.get_num_threads(),
        'precision': settings['train']['precision'],
        'parameters': sum(p.numel() for p in model.parameters()),
        'seed': config.seed,
        'versions': versions(),
        'commit': commit(),
        'split_fingerprint': data.get('split_fingerprint'),
        'settings': dict(settings),
        'curve': curve,
    }


def export(
    model: Any,
    data: HeteroData,
    run_dir: Path,
    found: Mapping[str, Any],
    ids: IdMap | None,
) -> None:
    """Writes the trained model.

    Args:
        model: Saved by its own ``save_pretrained`` into ``model/`` if it has one, else
            as ``model.safetensors`` beside its ``embeddings`` (if it has them).
        data: What the embeddings are computed from.
        run_dir: Folder of the run.
        found: The summary of the run.
        ids: Original ids; written as ``ids.json``.
    """
    if hasattr(model, 'save_pretrained'):
        protocol = ', '.join(f'{k}={v}' for k, v in found['protocol'].items())
        measured = found['metrics']  # none without a validation
        metrics = {**measured, 'protocol': protocol} if measured else None
        settings = found['settings']
        folder = run_dir / 'model'
        model.save_pretrained(folder, ids=ids, metrics=metrics, config=settings)
    else:
        names = ('fingerprint', 'split_fingerprint')
        metadata = {name: data[name] for name in names if name in data}
        metadata['class'] = type(model).__name__
        path = run_dir / 'model.safetensors'
        save_tensors(path, model.state_dict(), metadata)
        if hasattr(model, 'embeddings'):
            vectors = model.embeddings(data)
            save_tensors(run_dir / 'embeddings.safetensors', vectors, metadata)
    if ids is not None:
        ids.save(run_dir / 'ids.json')
