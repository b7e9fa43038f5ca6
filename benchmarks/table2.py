"""Counts of the data sets, as they are and as the article's Table 2 prints them.

    python -m benchmarks.table2 --data ../data

The article counts training and test interactions and leaves the validation ones out.
Prints a table and writes ``benchmarks/results/table2.json``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hellm_pyg.assembly import statistics
from hellm_pyg.checkpoint import save_json
from hellm_pyg.config import load_config
from hellm_pyg.datasets import InteractionFiles
from hellm_pyg.transforms import LeaveOneOut

RESULT = Path(__file__).parent / 'results' / 'table2.json'
COLUMNS = {
    'users': 'users',
    'items': 'items',
    'interactions': 'interactions',
    'sparsity': 'sparsity',
    'counted': 'as the article counts',
    'sparsity_counted': 'sparsity so',
    'mean_length': 'mean history',
    'median_length': 'median',
    'longest': 'longest',
    'cold_items': 'items without training',
}


def counts(name: str) -> dict[str, Any]:
    """Counts one of the data sets that the recipes know."""
    source = load_config('lightgcn', [f'dataset={name}']).data.interactions
    with tempfile.TemporaryDirectory() as root:
        path = Path(os.path.expandvars(source))
        data = InteractionFiles(root, path, pre_transform=LeaveOneOut())[0]
    rows: dict[str, Any] = statistics(data)
    users, items = rows['users'], rows['items']
    counted = rows['training + test (as the article counts)']
    return {
        'users': users,
        'items': items,
        'interactions': rows['interactions'],
        'sparsity': 1 - rows['interactions'] / (users * items),
        'counted': counted,
        'sparsity_counted': 1 - counted / (users * items),
        'training': rows['training interactions'],
        'mean_length': rows['interactions'] / users,
        'median_length': rows['history, median'],
        'longest': rows['history, longest'],
        'cold_items': rows['items without training'],
        'fingerprint': data.fingerprint,
    }


def render(tables: dict[str, dict[str, Any]]) -> str:
    """The counts as Markdown."""
    lines = ['| | ' + ' | '.join(COLUMNS.values()) + ' |', '|---|' + '--:|' * 10]
    for name, row in tables.items():
        cells = [name]
        for key in COLUMNS:
            value = row[key]
            if 'sparsity' in key:
                digits = 4 if key == 'sparsity' else 3  # as printed
                cells.append(f'{100 * value:.{digits}f} %')
            else:
                cells.append(f'{value:,}' if isinstance(value, int) else f'{value:.2f}')
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser('benchmarks.table2')
    parser.add_argument('datasets', nargs='*', default=['sports', 'beauty', 'toys'])
    parser.add_argument('--data', type=Path, help='folder of the data (HELLM_DATA)')
    parser.add_argument('--out', type=Path, default=RESULT)
    args = parser.parse_args(argv)
    if args.data is not None:
        os.environ['HELLM_DATA'] = str(args.data.absolute())
    tables = {name: counts(name) for name in args.datasets}
    save_json(args.out, tables)
    print(render(tables))


if __name__ == '__main__':
    main()
