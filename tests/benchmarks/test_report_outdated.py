"""Which results answer to the file of their table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.cell import digest
from benchmarks.report import outdated as module
from benchmarks.report.outdated import outdated
from benchmarks.table import find_recipe


def test_results_without_a_cell_or_of_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {
        'datasets': ['beauty', 'toys'],
        'seeds': [1],
        'protocols': [],
        'cells': {
            'seq': {'recipe': 'sasrec', 'overrides': ['train.lr=0.1']},
            'both': {'recipe': 'ensemble', 'members': {'seq': 'seq'}},
        },
    }
    (tmp_path / 'shops.yaml').write_text(yaml.safe_dump(table))
    monkeypatch.setattr(module, 'PAPER', tmp_path)

    def write(key: str, recipe: str, *own: str, read: Any = None, **more: Any) -> Path:
        dataset, name, seed = key.split('-')
        found = {
            'name': name,
            'recipe': recipe,
            'overrides': [f'dataset={dataset}', f'train.seed={seed}', *own],
            'test': {},
            'read': read or {},
            **more,
        }
        path = tmp_path / f'{key}.json'
        path.write_text(json.dumps(found))
        return path

    tuned = find_recipe('sasrec')
    members = ['ensemble.members={}', 'ensemble.members.seq=runs/beauty/seq/1']
    current = [
        write('beauty-seq-1', tuned, 'train.lr=0.1'),
        write('beauty-seq-7', tuned, 'train.lr=0.3'),
        write('sports-seq-1', tuned, 'train.lr=0.3'),
        write('beauty-rectools-1', '', peer='rectools 0.19.0'),
    ]
    former = [
        write('toys-seq-1', tuned, 'train.lr=0.2'),
        write('beauty-gone-1', tuned, 'train.lr=0.1'),
        write('beauty-gone-7', tuned, 'train.lr=0.1'),
        write('beauty-both-1', 'ensemble', *members, read={'beauty-seq-1': 'other'}),
    ]
    assert outdated([*current, *former], 'shops') == set(former)
    read = {'beauty-seq-1': digest(current[0])}
    write('beauty-both-1', 'ensemble', *members, read=read)
    assert outdated(former, 'shops') == set(former[:-1])
    assert outdated(former, 'other') == set()
