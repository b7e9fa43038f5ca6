"""Results as ``benchmarks.run`` writes them, of models that were never trained."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report.cells import METRICS, per_user

HEADLINE = 'history=train+val, mask=seen'
TRAIN = 'history=train, mask=train'


def pack(rank: np.ndarray) -> dict[str, str]:
    doubled = (2 * rank.clip(max=1000)).astype('<u2').tobytes()
    return {
        'encoding': 'zlib, base64, uint16 of twice the rank, at most 1000',
        'data': base64.b64encode(zlib.compress(doubled, 9)).decode(),
    }


def metrics(rank: np.ndarray) -> dict[str, float]:
    return dict(zip(METRICS, per_user(rank).mean(axis=0).tolist(), strict=True))


def ranks(users: int, quality: float, seed: int) -> np.ndarray:
    """Ranks that users share in part, so that models are correlated."""
    common = np.random.default_rng(0).exponential(size=users)
    own = np.random.default_rng(seed).exponential(size=users)
    return np.floor(1 + 400 * common * own / quality)


def result(
    name: str,
    rank: np.ndarray,
    *,
    dataset: str = 'beauty',
    seed: int = 1,
    epochs: int = 5,
    **content: Any,
) -> dict[str, Any]:
    """One result whose ranks are the same under both protocols, worse in one."""
    by_protocol = {HEADLINE: rank, TRAIN: np.floor(1.3 * rank)}
    measured = metrics(rank)
    curve = [
        {
            'epoch': epoch,
            'loss': 1 / epoch,
            'seconds': 10.0 + epoch / 7,
            'eval_seconds': 1.0,
            'metrics': None
            if epoch % 2 == 0 and epoch < epochs
            else {m: 1.2 * v * (1 - 0.8**epoch) for m, v in measured.items()},
        }
        for epoch in range(1, epochs + 1)
    ]
    validation: dict[str, Any] = {
        'metrics': {m: 1.2 * v for m, v in measured.items()},
        'best_epoch': epochs,
        'epochs': epochs,
        'seconds_per_epoch': 10.5,
        'seconds': 12.0 * epochs,
        'peak_memory_bytes': {'process': 800_000_000 + 10_000 * len(rank)},
        'device': 'cpu',
        'threads': 2,
        'versions': {'python': '3.11.7', 'torch': '2.13.0'},
        'commit': 'a' * 40,
        'curve': curve,
    }
    return {
        'name': name,
        'dataset': dataset,
        'seed': seed,
        'cell': name,
        'grid': {},
        'recipe': 'lightgcn',
        'overrides': [f'dataset={dataset}', f'train.seed={seed}'],
        'command': f'hellm pretrain lightgcn train.seed={seed}',
        'commit': 'b' * 40,
        'data_fingerprint': 'c' * 64,
        'trained_parameters': 1000 * epochs,
        'validation': validation,
        'parameters': 9000 * epochs,
        'test': {
            p: {'metrics': metrics(r), 'users': len(r), 'seconds': 0.5}
            for p, r in by_protocol.items()
        },
        'ranks': {p: pack(r) for p, r in by_protocol.items()},
        **content,
    }


def refit(name: str, rank: np.ndarray, **content: Any) -> dict[str, Any]:
    """One result of a model that was trained on the validation items, too."""
    config = {'train': {'split': 'train+val'}}
    return {**result(name, rank, **content), 'config': config, 'validation': {}}


def search(
    dataset: str, runs: list[dict[str, Any]], space: dict[str, list[Any]], best: int
) -> dict[str, Any]:
    """What ``benchmarks.search`` writes of one data set."""
    return {
        'recipe': 'vbpr',
        'dataset': dataset,
        'trials': len(runs) + 1,
        'minutes': 5.0,
        'seed': 0,
        'metric': 'validation N@10',
        'space': space,
        'best': {'values': runs[best]['values'], 'N@10': runs[best]['N@10']},
        'runs': runs,
    }


def trial(
    values: dict[str, Any], state: str, value: float | None, error: str = ''
) -> dict[str, Any]:
    epochs = 0 if value is None else 7
    own = {'epochs': epochs, 'seconds': 12.0 * epochs, 'curve': []}
    return {'values': values, 'state': state, 'error': error, 'N@10': value, **own}


def write(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    key = '-'.join(str(content[k]) for k in ('dataset', 'name', 'seed'))
    path = folder / f'{key}.json'
    path.write_text(json.dumps(content))
    return path
