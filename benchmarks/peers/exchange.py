"""The files between this library and a peer; needs numpy alone.

Both sides import it: the adapter as ``benchmarks.peers.exchange``, the peers' scripts,
which run in other environments, as ``exchange``.

A split is a folder with ``split.npz``: ``item`` and ``ptr`` hold the training items of
user ``u``, oldest first, in ``item[ptr[u]:ptr[u + 1]]``; ``val`` holds the validation
item of each user, -1 for none; ``num_items`` counts the catalogue; ``x_<m>`` are
features of the items, rows that are missing being NaN. Test items are not written: no
peer can read them.

A peer answers with ``info.json`` and with lists of all users, ``lists-<history>.npy``:
int32 of shape [U, K], the best items first, nothing left out (masking is the
evaluator's), rows that end early filled up with -1.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SPLIT, INFO = 'split.npz', 'info.json'
# Items of a list that are left when all known ones are masked.
LENGTH = 200


class Split(NamedTuple):
    """Interactions before the test items, and features."""

    item: np.ndarray
    ptr: np.ndarray
    val: np.ndarray
    num_items: int
    features: dict[str, np.ndarray]

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.val)

    @property
    def list_length(self) -> int:
        """Length of the lists that the evaluator wants."""
        longest = int(np.diff(self.ptr).max(initial=0)) + 1
        return min(self.num_items, LENGTH + longest)

    def history(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of ``'train'`` or ``'train+val'``, by user, oldest first."""
        user = np.repeat(np.arange(self.num_users), np.diff(self.ptr))
        if name == 'train':
            return user, self.item
        held = np.flatnonzero(self.val >= 0)
        user = np.concatenate([user, held])
        order = np.argsort(user, kind='stable')
        return user[order], np.concatenate([self.item, self.val[held]])[order]


def write_split(folder: Path, split: Split) -> None:
    """Writes what a peer may read."""
    arrays: dict[str, Any] = {f'x_{name}': x for name, x in split.features.items()}
    arrays |= {'item': split.item, 'ptr': split.ptr, 'val': split.val}
    np.savez(folder / SPLIT, num_items=split.num_items, **arrays)


def read_split(folder: Path) -> Split:
    """Reads what :func:`write_split` wrote."""
    with np.load(folder / SPLIT) as file:
        features = {n[2:]: file[n] for n in file.files if n.startswith('x_')}
        item, ptr, val = (file[name] for name in ('item', 'ptr', 'val'))
        return Split(item, ptr, val, int(file['num_items']), features)


def write_answer(
    folder: Path, lists: Mapping[str, np.ndarray], info: Mapping[str, Any]
) -> None:
    """Writes the lists of each history and what was done to get them."""
    for history, items in lists.items():
        np.save(folder / f'lists-{history}.npy', items.astype(np.int32))
    (folder / INFO).write_text(json.dumps(info, indent=2))


def top_items(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """The items with the largest inner products, [U, k], best first."""
    best = np.empty((len(users), k), np.int32)
    for start in range(0, len(users), 512):
        score = users[start : start + 512] @ items.T
        chosen = np.argpartition(-score, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(score, chosen, 1), 1, kind='stable')
        best[start : start + 512] = np.take_along_axis(chosen, order, 1)
    return best


def validation_ndcg(split: Split, lists: np.ndarray, k: int = 10) -> float:
    """N@k of the validation items in lists of history 'train', training items left out.

    What peers select by; the reported number is the evaluator's.
    """
    known = np.zeros(split.num_items + 1, bool)  # the last one stands for -1
    gains = []
    for user in np.flatnonzero(split.val >= 0):
        own = split.item[split.ptr[user] : split.ptr[user + 1]]
        known[own] = True
        ranked = lists[user][~known[lists[user]]][:k]
        known[own] = False
        (place,) = np.nonzero(ranked == split.val[user])
        gains.append(1 / np.log2(place[0] + 2) if len(place) else 0.0)
    return float(np.mean(gains))


def versions(*names: str) -> dict[str, str]:
    """Versions of Python and of installed packages."""
    found = {name: importlib.metadata.version(name) for name in names}
    return {'python': platform.python_version(), **found}


def peak_memory() -> dict[str, int]:
    """Largest memory of this process so far, in bytes."""
    if sys.platform == 'win32':
        return {}
    import resource

    unit = 1 if sys.platform == 'darwin' else 1024
    return {'process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
