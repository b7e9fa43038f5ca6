"""Searches for hyper-parameters on one data set and carries them to the others.

    python -m benchmarks.search benchmarks/search/lightgcn.yaml --data ../data
    python -m benchmarks.search all --trials 8 --minutes 5 --carry toys sports=10

Every model gets the same number of trials of the same minutes; trials that lag behind
the median are cut short. The winner goes to the other data sets with a third of its
learning rate, the same and three times that, for the same minutes each or for those of
the data set: by default 6 on Sports, where an epoch takes longer. Only
the validation is read. ``benchmarks/recipes/<model>.yaml`` is the recipe that was
found, ``benchmarks/results/search/<model>.json`` all that was tried. The same command
goes on where a stopped or killed one was, on another machine from the latter file.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.search.space import Space, assignments, load_space, write_recipe
from benchmarks.search.study import Budget, Search
from hellm_pyg.checkpoint import load_json, save_json
from hellm_pyg.config import load_config

HERE = Path(__file__).parent
LR = 'train.lr'


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.data is not None:
        os.environ['HELLM_DATA'] = str(args.data.absolute())
    paths = sorted(HERE.glob('*.yaml')) if args.space == 'all' else [Path(args.space)]
    try:
        spaces = [load_space(path) for path in paths]
        carry = carried(args.carry, args.minutes)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    failed = []
    # The first data set of every model comes before the others of any: a stop leaves
    # equal shares. What was begun is not forgotten, though.
    for everything in (False, True):
        for space in spaces:
            try:
                _search(space, carry, everything, args)
            except ValueError as error:
                failed.append(f'{space.name}: {error}')
                print(failed[-1], file=sys.stderr)
    for text in dict.fromkeys(failed):
        print(f'FAILED: {text}', file=sys.stderr)
    return len(failed) > 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'benchmarks.search',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root = HERE.parent
    parser.add_argument('space', help="file of a space, or 'all'")
    parser.add_argument('--dataset', default='beauty', help='where it is searched')
    parser.add_argument(
        '--carry',
        nargs='*',
        default=['toys', 'sports=6'],
        metavar='NAME[=MINUTES]',
        help='where the winner goes',
    )
    parser.add_argument('--trials', type=int, default=Budget().trials)
    parser.add_argument('--minutes', type=float, default=Budget().minutes)
    parser.add_argument('--data', type=Path, help='folder of the data (HELLM_DATA)')
    parser.add_argument('--runs', type=Path, default=Path('runs/search'))
    parser.add_argument('--recipes', type=Path, default=root / 'recipes')
    parser.add_argument('--results', type=Path, default=root / 'results' / 'search')
    return parser


def carried(names: Sequence[str], minutes: float) -> dict[str, float]:
    """Minutes of a trial on each data set of ``--carry``.

    Raises:
        ValueError: If they are not a positive number.
    """
    found = {}
    for text in names:
        name, equals, own = text.partition('=')
        try:
            found[name] = float(own) if equals else minutes
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < math.inf:
            raise ValueError(
                f"'--carry' needs names of data sets, with minutes or without, as in "
                f"'sports=15' (got {text!r})"
            )
    return found


def learning_rates(rate: float) -> list[float]:
    """A third of a learning rate, the same, and three times that, to one digit."""
    return [float(f'{rate / 3:.0e}'), rate, float(f'{3 * rate:.0e}')]


def _search(
    space: Space,
    carry: Mapping[str, float],
    everything: bool,
    args: argparse.Namespace,
) -> None:
    """Searches on the first data set, carries to the others, writes what was found."""
    first, budget = args.dataset, Budget(args.trials, args.minutes)
    path = args.results / f'{space.name}.json'
    record = load_json(path, dict) if path.is_file() else {}
    former = record.get('carried', {})
    folder = args.runs / first / space.name
    search = Search(space, first, budget, folder, record=record)
    search.run()
    points, found = {first: search.best}, search.to_dict()
    tries: dict[str, Any] = {}
    for name, minutes in carry.items():
        begun = name in former or (args.runs / name / space.name).is_dir()
        if not (everything or begun):
            continue
        fixed = assignments(search.best)
        rate = load_config(space.recipe, [f'dataset={name}', *fixed]).train.lr
        rates = learning_rates(rate)
        own = space._replace(values={LR: rates})
        folder = args.runs / name / space.name
        few = Budget(len(rates), minutes)
        tried = Search(own, name, few, folder, fixed, record=former.get(name))
        tried.run()
        points[name] = {**search.best, **tried.best}
        tries[name] = tried.to_dict()
    command = _command(space, args)
    save_json(path, {'command': command, **found, 'carried': tries})
    comment = _comment(space, found, tries, command)
    write_recipe(args.recipes / f'{space.name}.yaml', space, points, comment)


def _command(space: Space, args: argparse.Namespace) -> str:
    words = [
        'python',
        '-m',
        'benchmarks.search',
        f'benchmarks/search/{space.name}.yaml',
    ]
    words += ['--dataset', args.dataset, '--trials', str(args.trials)]
    words += ['--minutes', f'{args.minutes:g}', '--carry', *args.carry]
    return shlex.join(words)


def _comment(
    space: Space, found: dict[str, Any], tries: dict[str, Any], command: str
) -> str:
    lines = [
        f'The recipe {space.recipe!r} with the values that a search on '
        f'{found["dataset"]} found: {len(found["runs"])} trials',
        f'of {found["minutes"]:g} minutes or less, best {found["metric"]} '
        f'{found["best"]["N@10"]:.4f}.',
        *(f'  {key}: {value}' for key, value in found['best']['values'].items()),
    ]
    for name, tried in tries.items():
        best = tried['best']
        lines.append(
            f'On {name} the same with {LR}={best["values"][LR]:g}, the best of '
            f'{len(tried["runs"])} of {tried["minutes"]:g} minutes: {best["N@10"]:.4f}.'
        )
    return '\n'.join([*lines, '', f'  {command}'])


if __name__ == '__main__':
    sys.exit(main())
