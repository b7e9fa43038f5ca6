"""The data card: what a prepared data set holds and how it came about."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import atomic, save_json
from hellm_pyg.data.features import missing_rows
from hellm_pyg.data.split import INTERACTS, LATER, edge_tensor
from hellm_pyg.datasets.card_text import card_markdown
from hellm_pyg.datasets.provenance import Provenance

FORMAT = 1

TOP_SHARES = (1, 5, 10, 20, 50)
STEPS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70)  # goes on tenfold from 10
BARS = 20
# Times in this range are read as seconds since 1970: the years 1980 to 2100.
SECONDS = (315_532_800, 4_102_444_800)


def data_card(data: HeteroData, provenance: Provenance | None = None) -> dict[str, Any]:
    r"""Counts, distributions and coverage of a data set, with its provenance.

    The same data and provenance give the same card: it holds no clock, path or
    machine. What a split took out of the edges counts as interactions. With
    :math:`E` of these, the sparsity is :math:`1 - E / (U I)`; the Gini coefficient
    of the items' popularity :math:`d_1 \le \dots \le d_I` is

    .. math::
        G = \frac{\sum_{i=1}^{I} (2 i - I - 1) \, d_i}{I \sum_{i=1}^{I} d_i}.

    Args:
        data: The graph, split or not.
        provenance: What else is known.

    Returns:
        Plain JSON values.
    """
    provenance = provenance or Provenance()
    users, items = int(data['user'].num_nodes), int(data['item'].num_nodes)
    parts = _interactions(data)
    all_users, all_items, time = (
        torch.cat([part[i] for part in parts.values()]) for i in range(3)
    )
    length = torch.bincount(all_users, minlength=users).numpy()
    popularity = torch.bincount(all_items, minlength=items).numpy()
    known = {
        entry.name: getattr(provenance, entry.name)
        for entry in dataclasses.fields(provenance)
    }
    card = {
        'format': FORMAT,
        'name': data.get('name') or '',
        'source': known.pop('source'),
        'fingerprint': data.get('fingerprint') or '',
        'counts': {
            'users': users,
            'items': items,
            'interactions': all_users.numel(),
            'sparsity': 1 - all_users.numel() / max(users * items, 1),
        },
        'lengths': {**_summary(length), 'histogram': _histogram(length)},
        'popularity': {
            **_summary(popularity),
            'gini': _gini(popularity),
            'top shares': _top_shares(popularity),
            'histogram': _histogram(popularity),
        },
        'times': _times(time, data.get('time_unit')),
        'split': _split(parts, items, known.pop('split')),
        'modalities': _modalities(data, known.pop('encoders')),
        'columns': _columns(data),
        **known,
    }
    return json.loads(json.dumps(card, allow_nan=False))  # tuples become lists


def write_card(
    folder: str | os.PathLike[str],
    data: HeteroData,
    provenance: Provenance | None = None,
) -> tuple[Path, Path]:
    """Writes ``data_card.json`` and ``data_card.md``, each whole or not at all.

    Args:
        folder: The folder; made if it is not there.
        data: The graph, split or not.
        provenance: What else is known.

    Returns:
        The paths of the Markdown and of the JSON.
    """
    card = data_card(data, provenance)
    text = card_markdown(card)
    markdown, plain = Path(folder) / 'data_card.md', Path(folder) / 'data_card.json'
    save_json(plain, card)
    with atomic(markdown) as temporary:
        temporary.write_text(text, encoding='utf-8', newline='\n')
    return markdown, plain


def _interactions(data: HeteroData) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Users, items and times (none if unknown) by the part of a split."""
    nothing = torch.empty(0, dtype=torch.long)
    parts = {}
    for name, relation in (('training', INTERACTS), ('later', LATER)):
        if relation in data.edge_types:
            user, item = edge_tensor(data[relation].edge_index)
            parts[name] = user, item, data[relation].get('time', nothing)
    for name, short in (('validation', 'val'), ('test', 'test')):
        item = data['user'].get(f'{short}_item')
        if item is not None:
            user = (item >= 0).nonzero().view(-1)
            time = data['user'].get(f'{short}_time')
            parts[name] = user, item[user], nothing if time is None else time[user]
    return parts


def _summary(count: NDArray[np.int64]) -> dict[str, Any]:
    if count.size == 0:
        return {'mean': 0.0, 'median': 0.0, 'smallest': 0, 'largest': 0}
    return {
        'mean': float(count.mean()),
        'median': float(np.median(count)),
        'smallest': int(count.min()),
        'largest': int(count.max()),
    }


def _histogram(count: NDArray[np.int64]) -> list[dict[str, int]]:
    """Number of values in steps: equal ones if the values are of one magnitude."""
    if count.size == 0:
        return []
    smallest, largest = int(count.min()), int(count.max())
    if largest < 10 * max(smallest, 1) or largest - smallest < BARS:
        width = -(-(largest - smallest + 1) // BARS)
        edges = list(range(smallest, largest + width + 1, width))
    else:
        edges = [0, *STEPS]
        while edges[-1] <= largest:
            edges += [10 * step for step in edges[-6:]]
        first = np.searchsorted(edges, smallest, 'right') - 1
        last = np.searchsorted(edges, largest, 'right')
        edges = edges[first : last + 1]
    found = np.histogram(count, edges)[0]
    return [
        {'from': start, 'to': end - 1, 'count': int(n)}
        for start, end, n in zip(edges, edges[1:], found, strict=False)
    ]


def _gini(count: NDArray[np.int64]) -> float:
    total = int(count.sum())
    if total == 0:
        return 0.0
    rank = np.arange(1, count.size + 1)
    weighted = int(((2 * rank - count.size - 1) * np.sort(count)).sum())
    return weighted / (count.size * total)


def _top_shares(count: NDArray[np.int64]) -> dict[str, float]:
    """Percent of the items, most popular first, to their part of interactions."""
    total = max(int(count.sum()), 1)
    so_far = np.sort(count)[::-1].cumsum()
    return {
        str(percent): int(so_far[max(-(-count.size * percent // 100), 1) - 1]) / total
        for percent in TOP_SHARES
        if count.size
    }


def _times(time: Tensor, unit: str | None) -> dict[str, Any]:
    """First and last time; days and years if the unit is seconds since 1970."""
    if time.numel() == 0 or unit == 'position':
        return {}
    first, last = int(time.min()), int(time.max())
    out: dict[str, Any] = {'first': first, 'last': last}
    plausible = SECONDS[0] <= first and last < SECONDS[1]
    if plausible and unit in ('s', None):
        days = [datetime.fromtimestamp(t, UTC).date() for t in (first, last)]
        out |= {'first day': days[0].isoformat(), 'last day': days[1].isoformat()}
        year = time.numpy().astype('datetime64[s]').astype('datetime64[Y]')
        count = np.bincount(year.astype(np.int64) + 1970)
        out['years'] = {
            str(y): int(count[y]) for y in range(days[0].year, days[1].year + 1)
        }
    return out


def _split(
    parts: Mapping[str, tuple[Tensor, Tensor, Tensor]], num_items: int, how: str
) -> dict[str, Any]:
    if 'test' not in parts:
        return {'how': how or 'none: all interactions are edges'}
    default = 'leave one out: the last item is the test, the one before validation'
    if 'later' in parts:
        default = 'by date: the first item in each period; later ones are not read'
    known = torch.zeros(num_items, dtype=torch.bool)
    known[parts['training'][1]] = True
    out: dict[str, Any] = {'how': how or default}
    for name in ('training', 'validation', 'test', 'later'):
        if name in parts:
            out[name] = parts[name][0].numel()
    out['items without training'] = int((~known).sum())
    for name in ('validation', 'test'):
        cold = int((~known[parts[name][1]]).sum())
        out[f'{name} targets without training'] = cold
    return out


def _modalities(
    data: HeteroData, encoders: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    out = {}
    for name, x in data['item'].items():
        if not name.startswith('x_'):
            continue
        modality = name.removeprefix('x_')
        present = int((~missing_rows(x)).sum())
        out[modality] = {
            'width': x.size(1),
            'present': present,
            'coverage': present / max(x.size(0), 1),
            'encoder': dict(encoders.get(modality, {})),
        }
    unknown = set(encoders) - set(out)
    if unknown:
        raise ValueError(
            f"'encoders' names modalities that the data lack: {sorted(unknown)} "
            f'(got data with {sorted(out)})'
        )
    return out


def _columns(data: HeteroData) -> dict[str, int]:
    """Number of items with a value, by column; images by their mask."""
    columns: dict[str, Any] = {}
    if 'title' in data['item']:
        columns['title'] = data['item'].title
    columns |= data['item'].get('table') or {}
    filled = {
        name: sum(value is not None and value != '' for value in values)
        for name, values in columns.items()
    }
    missing = data['item'].get('image_missing')
    if missing is not None:
        filled['image'] = int((~missing).sum())
    return filled
