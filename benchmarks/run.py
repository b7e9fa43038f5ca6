"""Runs a table of experiments: recipes with overrides x data sets x seeds.

    hellm benchmark benchmarks/paper/table1.yaml --data ../data
    hellm benchmark benchmarks/paper/table1.yaml --only 'beauty-sasrec*' --list
    hellm benchmark benchmarks/paper/table1.yaml --datasets toys --seeds 7 8

``python -m benchmarks.run`` is the same.

A table is a YAML file:

    datasets: [beauty, toys]    # of the recipes
    seeds: [2024]               # or {beauty: [2024, 2025], toys: [2024]}
    protocols: [[train+val, seen], [train+val, none]]    # history, mask at test
    overrides: [train.epochs=9] # of every cell, may be left out
    runs: runs                  # folder of the runs, may be left out
    base: sasrec                # what the report compares with, else LightGCN
    cells:
      sasrec: {recipe: sasrec}
      knn: {recipe: pretrain_best, grid: {data.knn: [1, 5, 10]}, datasets: [beauty]}
      hellm: {recipe: finetune_best, tables: {seq: sasrec}, seeds: [2024]}
      taught: {recipe: sasrec_best, teachers: {plain: sasrec}}
      both: {recipe: ensemble, members: {hellm: hellm, seq: sasrec}, seeds: [2024]}

``grid`` is run at every combination of its values. ``tables`` names the cells whose
item tables a language model reads, ``members`` those that an ensemble sums (the first
with weight 1), ``teachers`` those that a model learns from, instead of the recipe's,
``refit`` the one whose epochs or weights, chosen on validation, are taken over to train
on the validation items, too: all of the same data set and seed. A cell's own
``datasets`` restrict it to some of the table's; its own ``seeds``, a list or one for
some of the data sets, take the place of the table's. A recipe that the
search has written to ``benchmarks/recipes`` goes before the packaged one of its name.

Every cell runs in its own process in ``runs/<dataset>/<cell>/<seed>``, which tables of
the same ``runs`` share. Its result is ``<dataset>-<cell>-<seed>.json`` in
``benchmarks/results/<table>``. Cells are skipped that are finished under all protocols,
as are those whose runs they read; one whose run has gone, as in a fresh checkout, is
trained again where another is to read it, and measured again under every table that
shares it, should it come out anew. Killed ones go on, a failed one leaves
``....failed.json`` there and does not stop the rest. The test items are read for each
protocol, after validation has chosen the weights; with ``protocols: []`` they are left
alone, and the report compares the cells on validation with ``base``, which is the name
of a cell or of a point of its grid, as in ``knn-knn=5``.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import child
from benchmarks.table import Cell, load_table, read_cells

RESULTS = Path(__file__).parent / 'results'


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(argv)
    if args.data is not None:
        os.environ['HELLM_DATA'] = str(args.data.absolute())
    folder = args.results / args.table.stem
    try:
        table = load_table(args.table)
        known = read_cells(table, args.datasets, args.seeds)
    except ValueError as error:
        print(f'Error: {error}', file=sys.stderr)
        return 2
    if args.cell is not None:
        child.follow_parent()
        return _in_child(known[args.cell], table['protocols'], folder)
    chosen = [cell for cell in known.values() if _matches(cell, args.only)]
    if not chosen:
        print(f'no cell is like {shlex.join(args.only)}', file=sys.stderr)
        return 2
    return _run_all(chosen, known, table['protocols'], folder, argv, args.list)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'hellm benchmark',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('table', type=Path)
    parser.add_argument('--data', type=Path, help='folder of the data (HELLM_DATA)')
    parser.add_argument('--only', nargs='+', default=['*'], help='patterns of names')
    parser.add_argument(
        '--datasets', nargs='+', help="some of the table's, or others for all its cells"
    )
    parser.add_argument('--seeds', nargs='+', type=int, help="instead of the table's")
    parser.add_argument('--results', type=Path, default=RESULTS, help='folder')
    parser.add_argument('--list', action='store_true', help='show, do not run')
    parser.add_argument('--cell', help=argparse.SUPPRESS)
    return parser


def _matches(cell: Cell, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(cell.key, f'*{pattern}*') for pattern in patterns)


def _run_all(
    chosen: Sequence[Cell],
    known: Mapping[str, Cell],
    protocols: list[list[str]],
    folder: Path,
    argv: Sequence[str],
    only_list: bool,
) -> int:
    from benchmarks.cell import lost_sources, superseded, up_to_date

    def is_done(cell: Cell) -> bool:
        fresh = up_to_date(cell, known, protocols, folder)
        return fresh and not superseded(cell, folder)

    def is_read_again(cell: Cell) -> bool:
        readers = [other for other in chosen if cell.key in lost_sources(other, known)]
        return not all(map(is_done, readers))

    def check_sources(cell: Cell) -> None:
        left_out = lost_sources(cell, known) - {other.key for other in chosen}
        if left_out:
            raise ValueError(
                f"'--only' needs {shlex.join(sorted(left_out))}, too, which "
                f'{cell.key} reads and whose runs are not there'
            )

    failed = []
    for cell in chosen:
        note = folder / f'{cell.key}.failed.json'
        try:
            done = is_done(cell) and not is_read_again(cell)
            if not done:
                check_sources(cell)
        except ValueError as error:
            if not only_list:
                _note(note, cell, str(error))
                failed.append(note)
            print(f'{cell.key}: {error}', flush=True)
            continue
        print(f'{cell.key}: {"done" if done else " ".join(cell.overrides)}', flush=True)
        if only_list:
            continue
        note.unlink(missing_ok=True)
        if done:
            continue
        code = child.finish(child.start('benchmarks.run', [*argv, '--cell', cell.key]))
        if code != 0:
            if not note.is_file():  # it was killed, not raised
                _note(note, cell, f'exit status {code}')
            failed.append(note)
    for note in failed:
        told = json.loads(note.read_text())
        print(f'FAILED: {note}: {told["error"]}', file=sys.stderr)
    return len(failed) > 0


def _in_child(cell: Cell, protocols: list[list[str]], folder: Path) -> int:
    from benchmarks.cell import run_cell
    from hellm_pyg.allocator import keep_freed_memory

    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run_cell(cell, protocols, folder / f'{cell.key}.json')
    except Exception as error:
        traceback.print_exc()
        text = f'{type(error).__name__}: {error}'
        _note(folder / f'{cell.key}.failed.json', cell, text)
        return 1
    return 0


def _note(path: Path, cell: Cell, error: str) -> None:
    from benchmarks.cell import command
    from hellm_pyg.checkpoint import save_json
    from hellm_pyg.config import load_config

    told = {'name': cell.name, 'dataset': cell.dataset, 'seed': cell.seed}
    with contextlib.suppress(ValueError):  # of a cell that cannot be read
        told['command'] = command(cell, load_config(cell.recipe, cell.overrides))
    told['error'] = error
    save_json(path, told)


if __name__ == '__main__':
    sys.exit(main())
