from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks.report
from benchmarks.report import latex, markdown, page
from benchmarks.report.analysis import Settings
from benchmarks.report.document import build

RENDERERS = {'md': markdown.render, 'tex': latex.render, 'html': page.render}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.data is not None:
        os.environ['HELLM_DATA'] = str(args.data.absolute())
    settings = Settings(resamples=args.resamples, signs=args.signs, seed=args.seed)
    try:
        document = build(args.folder, args.baseline, settings)
    except ValueError as error:
        print(f'benchmarks.report: {error}', file=sys.stderr)
        return 2
    out = args.out or Path(os.path.commonpath([f.resolve() for f in args.folder]))
    out.mkdir(parents=True, exist_ok=True)
    for suffix, render in RENDERERS.items():
        path = out / f'RESULTS.{suffix}'
        path.write_text(render(document))
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'benchmarks.report',
        description=benchmarks.report.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder', type=Path, nargs='+', help='of results')
    parser.add_argument('--out', type=Path, help='folder of the report')
    parser.add_argument(
        '--baseline',
        action='append',
        help='cell to compare all others with, besides the best on validation; may be '
        "given several times (default: the base of the table, else 'lightgcn')",
    )
    parser.add_argument('--data', type=Path, help='folder of the data (HELLM_DATA)')
    parser.add_argument('--resamples', type=int, default=Settings.resamples)
    parser.add_argument('--signs', type=int, default=Settings.signs)
    parser.add_argument('--seed', type=int, default=Settings.seed)
    return parser


if __name__ == '__main__':
    sys.exit(main())
