"""cornac's VBPR: matrix factorisation with a second, visual factorisation of features.

Runs in an environment of its own; ``python -m benchmarks.peers cornac_vbpr`` starts it.
All modalities are put side by side; an item that lacks one has zeros there, the library
knowing no missing features. It trains for a fixed number of epochs, so that epochs are
run in parts: parameters are carried on, the moments of Adam start anew. Of all settings
given and all parts those with the highest validation N@10 are kept. Users are known by
their training items alone.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import exchange
import numpy as np
import torch
from cornac.data import Dataset, ImageModality
from cornac.models import VBPR

# Names of the parameters in ``init_params`` and in the model.
PARAMETERS = {
    'Bi': 'beta_item',
    'Gu': 'gamma_user',
    'Gi': 'gamma_item',
    'Tu': 'theta_user',
    'E': 'emb_matrix',
    'Bp': 'beta_prime',
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--seed', type=int, default=2024)
    parser.add_argument('--factors', type=int, default=32, help='of either kind')
    parser.add_argument('--batch-size', type=int, default=1024)
    parser.add_argument('--learning-rate', type=float, nargs='+', default=[1e-3, 5e-3])
    parser.add_argument(
        '--regularization', type=float, nargs='+', default=[1e-3, 1e-2, 1e-1]
    )
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--part', type=int, default=5, help='epochs to a validation')
    parser.add_argument('--patience', type=int, default=4, help='parts')
    return parser.parse_args()


def dataset(split: exchange.Split, seed: int) -> Dataset:
    user, item = split.history('train')
    # Ids are indices, and items without training are items, too.
    users = {u: u for u in range(split.num_users)}
    items = {i: i for i in range(split.num_items)}
    rows = zip(user.tolist(), item.tolist(), [1.0] * len(user), strict=True)
    train = Dataset.build(rows, global_uid_map=users, global_iid_map=items, seed=seed)
    features = np.concatenate(list(split.features.values()), axis=1)
    image = ImageModality(features=np.nan_to_num(features), ids=list(items))
    train.add_modalities(item_image=image.build(items))
    return train


def fit(
    args: argparse.Namespace,
    split: exchange.Split,
    train: Dataset,
    settings: dict[str, Any],
) -> tuple[float, int, Any, list[dict[str, Any]], int]:
    best: tuple[float, int, Any] = (-1.0, 0, None)
    model: Any = None
    curve: list[dict[str, Any]] = []
    for epoch in range(args.part, args.epochs + 1, args.part):
        state: dict[str, np.ndarray] = {}
        if model is not None:
            state = {name: getattr(model, own) for name, own in PARAMETERS.items()}
        model = VBPR(
            **settings,
            n_epochs=args.part,
            init_params=state,
            seed=args.seed,
            verbose=False,
        )
        began = time.perf_counter()
        model.fit(train)
        seconds = time.perf_counter() - began
        vectors = model.get_user_vectors(), model.get_item_vectors()
        lists = exchange.top_items(*vectors, split.list_length)
        value = exchange.validation_ndcg(split, lists)
        metrics = {'N@10': value}
        curve.append({'epoch': epoch, 'seconds': round(seconds, 3), 'metrics': metrics})
        if value > best[0]:
            best = value, epoch, vectors
        elif epoch - best[1] >= args.patience * args.part:
            break
    size = sum(getattr(model, name).size for name in PARAMETERS.values())
    return *best, curve, size


def main() -> None:
    args = arguments()
    split = exchange.read_split(args.folder)
    if not split.features:
        raise SystemExit('VBPR needs features of the items')
    train = dataset(split, args.seed)
    common = {
        'k': args.factors,
        'k2': args.factors,
        'batch_size': args.batch_size,
        'lambda_e': 0.0,
    }
    trials: list[dict[str, Any]] = []
    found: Any = (-1.0,)
    for rate, weight in itertools.product(args.learning_rate, args.regularization):
        own = {'learning_rate': rate, 'lambda_w': weight, 'lambda_b': weight}
        own_found = fit(args, split, train, {**common, **own})
        trials.append({**own, 'N@10': own_found[0], 'best_epoch': own_found[1]})
        print(trials[-1], flush=True)
        if own_found[0] > found[0]:
            found, settings = own_found, {**common, **own}
    _, epoch, vectors, curve, size = found
    seconds = sum(row['seconds'] for row in curve)
    exchange.write_answer(
        args.folder,
        {'train': exchange.top_items(*vectors, split.list_length)},
        {
            'versions': exchange.versions('cornac', 'torch', 'numpy'),
            'settings': {**settings, 'epochs': args.epochs, 'patience': args.patience},
            'trained_parameters': size,
            'validation': {
                'selection': 'N@10',
                'best_epoch': epoch,
                'epochs': curve[-1]['epoch'],
                'seconds_per_epoch': round(seconds / curve[-1]['epoch'], 3),
                'seconds': round(seconds, 3),
                'peak_memory_bytes': exchange.peak_memory(),
                'device': 'cpu',
                'threads': torch.get_num_threads(),
                'curve': curve,
                'trials': trials,
            },
        },
    )


if __name__ == '__main__':
    main()
