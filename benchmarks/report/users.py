"""What is known of each test user: length of the history, popularity of the target.

A report reads ``<folder>/users/<dataset>.json``. Where that is absent and
``HELLM_DATA`` is set, it is counted from the data that the cells were trained on, and
written.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.report.cells import Result, Section

LENGTHS = (0, 4, 6, 10, 20, 50, 100, 200)
COUNTS = (1, 5, 10, 20, 50, 100, 200)
SMALLEST = 0.02  # share of the users below which a slice joins its neighbour


class Users(NamedTuple):
    """Training interactions of each test user, and of each one's target item."""

    history: np.ndarray
    popularity: np.ndarray


class Slice(NamedTuple):
    """Some of the users."""

    label: str
    user: np.ndarray


def _pack(counts: np.ndarray) -> str:
    raw = counts.astype('<u4').tobytes()
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def _unpack(text: str) -> np.ndarray:
    raw = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(raw, '<u4').astype(np.int64)


def _count(result: Result) -> Users:
    from hellm_pyg.assembly import build_data
    from hellm_pyg.config import load_config
    from hellm_pyg.data.split import history_edges

    config = load_config(result.content['recipe'], result.content['overrides'])
    data, _ = build_data(config.data)
    expected = result.get('data_fingerprint')
    if data.fingerprint != expected:
        raise ValueError(
            f"'HELLM_DATA' holds other data than '{result.path}' was trained on (got "
            f'{data.fingerprint[:12]}, not {expected[:12]})'
        )
    train = history_edges(data, 'train')
    popularity = np.bincount(train.item.numpy(), minlength=int(data['item'].num_nodes))
    target = data['user'].test_item.numpy()
    tested = target >= 0
    if 'sample_mask' in data['user']:
        tested &= data['user'].sample_mask.numpy()
    return Users(train.length.numpy()[tested], popularity[target[tested]])


def load_users(section: Section) -> Users | None:
    """Reads or counts them; :obj:`None` if there is neither a file nor the data.

    Raises:
        ValueError: If they are not the users that were ranked, or ``HELLM_DATA``
            holds other data.
    """
    path = section.folder / 'users' / f'{section.dataset}.json'
    known = [
        r for r in section.results if r.get('data_fingerprint') and r.get('recipe')
    ]
    if not path.is_file():
        if not known or not os.environ.get('HELLM_DATA'):
            return None
        users = _count(known[0])
        path.parent.mkdir(exist_ok=True)
        content = {
            'data_fingerprint': known[0].get('data_fingerprint'),
            'encoding': 'zlib, base64, little-endian uint32',
            **{name: _pack(values) for name, values in users._asdict().items()},
        }
        path.write_text(json.dumps(content, indent=1) + '\n')
    content = json.loads(path.read_text())
    users = Users(_unpack(content['history']), _unpack(content['popularity']))
    fingerprints = {result.get('data_fingerprint') for result in known}
    if known and content['data_fingerprint'] not in fingerprints:
        raise ValueError(
            f"'{path}' was counted on other data than the results beside it were made "
            f'from: remove it to have it counted again'
        )
    for result in section.results:
        for rank in result.ranks.values():
            if len(rank) != len(users.history):
                raise ValueError(
                    f"'{path}' is of {len(users.history)} users (got {len(rank)} in "
                    f"'{result.path}'): remove it to have it counted again"
                )
    return users


def slices(counts: np.ndarray, edges: Sequence[int]) -> list[Slice]:
    """Users between consecutive edges; the last slice is open.

    Users below the first edge always stay alone. A slice of less than 2 % of the users
    joins the next one, or the last the one before.
    """
    smallest = SMALLEST * len(counts)
    starts = [edges[0]]
    for edge in edges[1:]:
        if ((counts >= starts[-1]) & (counts < edge)).sum() >= smallest:
            starts.append(edge)
    while len(starts) > 1 and (counts >= starts[-1]).sum() < smallest:
        starts.pop()
    found = []
    for low, high in zip([0, *starts], [*starts, None], strict=True):
        inside = (counts >= low) & (counts < (np.inf if high is None else high))
        if inside.any():
            low = int(counts[inside].min())
            if high is None:
                label = f'{low} or more'
            else:
                label = str(low) if low == high - 1 else f'{low} to {high - 1}'
            found.append(Slice(label, np.flatnonzero(inside)))
    return found
