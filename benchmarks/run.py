"""Runs a table of experiments: recipes with overrides x data sets x seeds.

    python -m benchmarks.run benchmarks/paper/beauty.yaml
    python -m benchmarks.run benchmarks/paper/beauty.yaml --only 'sasrec*' --list

A table is a YAML file:

    datasets: [beauty]          # of the recipes
    seeds: [2024]
    protocols: [[train+val, seen], [train+val, none]]    # history, mask at test
    cells:
      sasrec: {recipe: sasrec}
      knn: {recipe: pretrain_best, grid: {data.knn: [1, 5, 10]}}
      hellm: {recipe: finetune_best, tables: {seq: sasrec}, overrides: [train.epochs=6]}

``tables`` names the cells whose item tables a language model reads, of the same data
set and seed. Every cell runs in its own process in ``runs/<dataset>/<cell>/<seed>`` and
leaves ``benchmarks/results/<table>/<dataset>-<cell>-<seed>.json``. Finished cells are
skipped, killed ones go on, a failed one is reported and does not stop the rest. The
test items are read once a protocol, after validation has chosen the weights.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import itertools
import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

RESULTS = Path(__file__).parent / 'results'
TABLE_KEYS = {'datasets', 'seeds', 'protocols', 'cells'}
CELL_KEYS = {'recipe', 'overrides', 'grid', 'tables'}


class Cell(NamedTuple):
    """One run of a table."""

    name: str
    dataset: str
    seed: int
    recipe: str
    overrides: list[str]

    @property
    def run_dir(self) -> str:
        """Where the run lives, from the current folder."""
        return f'runs/{self.dataset}/{self.name}/{self.seed}'

    @property
    def key(self) -> str:
        """Name of the result."""
        return f'{self.dataset}-{self.name}-{self.seed}'


def load_table(path: Path) -> dict[str, Any]:
    """Reads a table and refuses keys that it does not know."""
    table = yaml.safe_load(path.read_text())
    for name, keys, known in (
        (path.name, table, TABLE_KEYS),
        *((f'{path.name}: {c}', v, CELL_KEYS) for c, v in table['cells'].items()),
    ):
        if unknown := set(keys) - known:
            raise ValueError(
                f'{name}: unknown {sorted(unknown)}; known {sorted(known)}'
            )
    return table


def cells(table: dict[str, Any]) -> Iterator[Cell]:
    """The runs of a table, in the order of the file."""
    for dataset, seed in itertools.product(table['datasets'], table['seeds']):
        for name, cell in table['cells'].items():
            common = [f'dataset={dataset}', f'train.seed={seed}']
            common += cell.get('overrides', [])
            for table_name, source in cell.get('tables', {}).items():
                folder = f'runs/{dataset}/{source}/{seed}'
                common.append(f'llm.tables.{table_name}={folder}')
            grid = cell.get('grid', {})
            for values in itertools.product(*grid.values()):
                point = [f'{k}={v}' for k, v in zip(grid, values, strict=True)]
                label = '-'.join([name, *(p.split('.')[-1] for p in point)])
                yield Cell(label, dataset, seed, cell['recipe'], common + point)


def run_cell(cell: Cell, protocols: list[list[str]], path: Path) -> None:
    """Trains a cell to its end, reads the test items, writes the result."""
    from hellm_pyg import experiment
    from hellm_pyg.checkpoint import load_json, load_tensors, save_json
    from hellm_pyg.config import load_config
    from hellm_pyg.training.record import commit

    config = load_config(cell.recipe, cell.overrides)
    train = experiment.pretrain if config.llm is None else experiment.finetune
    train(config, cell.run_dir)
    test = {}
    for history, mask in protocols:
        overrides = [f'eval.history={history}', f'eval.mask={mask}']
        result = experiment.evaluate_run(cell.run_dir, 'test', overrides)
        test[str(result.protocol)] = result.to_dict()
    history, mask = protocols[0]
    folder = Path(cell.run_dir)
    rank = load_tensors(folder / f'ranks-test-{history}-{mask}.safetensors')['rank']
    doubled = (2 * rank).round().int().numpy().astype('<u4').tobytes()
    phase = 'pretrain' if config.llm is None else 'finetune'
    metrics = load_json(folder / 'metrics.json')
    settings = metrics.pop('settings', {})
    save_json(
        path,
        {
            **cell._asdict(),
            'command': f'hellm {phase} {cell.recipe} {" ".join(cell.overrides)} '
            f'--out {cell.run_dir}',
            'commit': commit(),
            'validation': metrics,
            'trained_parameters': settings.get('trained_parameters'),
            'data_fingerprint': settings.get('data'),
            'backbone': config.llm and _label(config.llm.name),
            'test': test,
            'ranks': {
                'protocol': f'history={history}, mask={mask}',
                'encoding': 'zlib, base64, little-endian uint32 of twice the rank',
                'data': base64.b64encode(zlib.compress(doubled, 9)).decode(),
            },
        },
    )


def _same(cell: Cell, result: dict[str, Any]) -> bool:
    wanted = (cell.recipe, cell.overrides)
    return (result['recipe'], result['overrides']) == wanted


def _label(name: str) -> str:
    from hellm_pyg.llm import backbone_label

    return backbone_label(name)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument('table', type=Path)
    parser.add_argument('--only', default='*', help='pattern of names')
    parser.add_argument('--list', action='store_true', help='show, do not run')
    parser.add_argument('--cell', help=argparse.SUPPRESS)
    args = parser.parse_args()
    table = load_table(args.table)
    folder = RESULTS / args.table.stem
    failed = []
    for cell in cells(table):
        path = folder / f'{cell.key}.json'
        if args.cell is not None:
            if cell.key == args.cell:
                path.parent.mkdir(parents=True, exist_ok=True)
                run_cell(cell, table['protocols'], path)
            continue
        if not fnmatch.fnmatch(cell.key, f'*{args.only}*'):
            continue
        done = path.is_file() and _same(cell, json.loads(path.read_text()))
        print(f'{cell.key}: {"done" if done else " ".join(cell.overrides)}', flush=True)
        if args.list or done:
            continue
        command = [sys.executable, '-m', 'benchmarks.run', str(args.table)]
        if subprocess.call([*command, '--cell', cell.key]) != 0:
            failed.append(cell.key)
    for key in failed:
        print(f'FAILED: {key}', file=sys.stderr)
    return len(failed) > 0


if __name__ == '__main__':
    sys.exit(main())
