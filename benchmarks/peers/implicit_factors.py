"""implicit's factorisations: alternating least squares and BPR.

Runs in an environment of its own: ``python -m benchmarks.peers implicit_als``. Every
combination of the settings given is trained on the training items and the one with the
highest validation N@10 is kept. BPR is validated every ten iterations and stops after
three validations without improvement; ALS runs all of its few iterations.

What either can read at test: the user vectors of ALS are solved anew from train+val
items with the item vectors as trained (``recalculate_user``); BPR knows nothing of the
kind, so that its lists are those of the training items throughout.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from pathlib import Path
from typing import Any

import exchange
import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix

PATIENCE = 30  # iterations


class Enough(Exception):  # noqa: N818, it is no error
    """Stops a training from its callback, for want of another way."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--model', choices=('als', 'bpr'), required=True)
    parser.add_argument('--seed', type=int, default=2024)
    parser.add_argument('--factors', type=int, default=64)
    parser.add_argument('--iterations', type=int, help='15 of ALS, 1000 of BPR')
    parser.add_argument('--regularization', type=float, nargs='+')
    parser.add_argument(
        '--alpha', type=float, nargs='+', default=[5.0, 20.0, 80.0, 320.0]
    )
    parser.add_argument('--learning-rate', type=float, nargs='+', default=[0.02, 0.1])
    parser.add_argument('--threads', type=int, default=1)
    return parser.parse_args()


def matrix(split: exchange.Split, history: str) -> csr_matrix:
    user, item = split.history(history)
    ones = np.ones(len(user), np.float32)
    return csr_matrix((ones, (user, item)), (split.num_users, split.num_items))


def lists(model: Any, seen: csr_matrix, k: int, recalculate: bool) -> np.ndarray:
    best = np.empty((seen.shape[0], k), np.int32)
    for start in range(0, seen.shape[0], 1024):
        users = np.arange(start, min(start + 1024, seen.shape[0]))
        best[users], _ = model.recommend(
            users, seen[users], k, False, recalculate_user=recalculate
        )
    return best


def validation(split: exchange.Split, model: Any, train: csr_matrix) -> float:
    return exchange.validation_ndcg(
        split, lists(model, train, split.list_length, False)
    )


def fit_als(args: argparse.Namespace, split: exchange.Split, **chosen: float) -> Any:
    train, curve = matrix(split, 'train'), []
    model = AlternatingLeastSquares(
        args.factors,
        iterations=args.iterations or 15,
        random_state=args.seed,
        num_threads=args.threads,
        **chosen,
    )
    began = time.perf_counter()
    model.fit(train, show_progress=False)
    seconds = time.perf_counter() - began
    value = exchange.validation_ndcg(
        split, lists(model, train, split.list_length, False)
    )
    curve.append(row(model.iterations, seconds, value))
    return value, model.iterations, model, curve


def fit_bpr(args: argparse.Namespace, split: exchange.Split, **chosen: float) -> Any:
    train, curve = matrix(split, 'train'), []
    model = BayesianPersonalizedRanking(
        args.factors,
        iterations=args.iterations or 1000,
        random_state=args.seed,
        num_threads=args.threads,
        **chosen,
    )
    best: list[Any] = [-1.0, 0, None, None]
    spent = [0.0]

    def validate(iteration: int, seconds: float, *_: Any) -> None:
        spent[0] += seconds
        if (iteration + 1) % 10 == 0:
            value = exchange.validation_ndcg(
                split, lists(model, train, split.list_length, False)
            )
            curve.append(row(iteration + 1, spent[0], value))
            spent[0] = 0.0
            if value > best[0]:
                factors = model.user_factors.copy(), model.item_factors.copy()
                best[:] = value, iteration + 1, *factors
            elif iteration + 1 - best[1] >= PATIENCE:
                raise Enough

    with contextlib.suppress(Enough):
        model.fit(train, show_progress=False, callback=validate)
    value, iteration, model.user_factors, model.item_factors = best
    return value, iteration, model, curve


def row(epoch: int, seconds: float, value: float) -> dict[str, Any]:
    metrics = {'N@10': value}
    return {'epoch': epoch, 'seconds': round(seconds, 3), 'metrics': metrics}


def main() -> None:
    args = arguments()
    split = exchange.read_split(args.folder)
    if args.model == 'als':
        fit: Any = fit_als
        grid = {'regularization': args.regularization or [0.1, 10.0]}
        grid['alpha'] = args.alpha
    else:
        fit = fit_bpr
        grid = {'regularization': args.regularization or [0.001, 0.01, 0.03, 0.1]}
        grid['learning_rate'] = args.learning_rate
    trials: list[dict[str, Any]] = []
    best: tuple[float, int, Any, list[Any], dict[str, float]] = (-1.0, 0, None, [], {})
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        value, iteration, model, curve = fit(args, split, **chosen)
        trials.append({**chosen, 'N@10': value, 'best_epoch': iteration})
        print(trials[-1], flush=True)
        if value > best[0]:
            best = value, iteration, model, curve, chosen
    _, iteration, model, curve, chosen = best
    seconds = sum(one['seconds'] for one in curve)
    histories = ('train', 'train+val') if args.model == 'als' else ('train',)
    exchange.write_answer(
        args.folder,
        {
            name: lists(model, matrix(split, name), split.list_length, name != 'train')
            for name in histories
        },
        {
            'versions': exchange.versions('implicit', 'numpy', 'scipy'),
            'settings': {
                'model': args.model,
                'factors': args.factors,
                'iterations': model.iterations,
                **chosen,
            },
            'trained_parameters': model.user_factors.size + model.item_factors.size,
            'validation': {
                'selection': 'N@10',
                'best_epoch': iteration,
                'epochs': curve[-1]['epoch'],
                'seconds_per_epoch': round(seconds / curve[-1]['epoch'], 3),
                'seconds': round(seconds, 3),
                'peak_memory_bytes': exchange.peak_memory(),
                'device': 'cpu',
                'threads': args.threads,
                'curve': curve,
                'trials': trials,
            },
        },
    )


if __name__ == '__main__':
    main()
