"""Renders the results of a table as Markdown, the paper's numbers beside.

    python -m benchmarks.report benchmarks/results/beauty

Writes ``RESULTS.md`` into the folder. Every number comes from a JSON file that
``benchmarks.run`` has left there, or from ``benchmarks/paper/expected.json`` (printed
values of others, marked as such).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).parent / 'paper' / 'expected.json'
METRICS = ('R@10', 'N@10', 'R@20', 'N@20')


def _row(*values: str) -> str:
    return '| ' + ' | '.join(values) + ' |'


def _numbers(metrics: dict[str, float]) -> list[str]:
    return [f'{metrics[m]:.4f}' if m in metrics else '-' for m in METRICS]


def _measured(results: list[dict[str, Any]]) -> list[str]:
    lines = []
    for protocol in dict.fromkeys(p for result in results for p in result['test']):
        lines += ['', f'### Test, {protocol}', '', _row('cell', 'seed', *METRICS)]
        lines.append('|---|--:|' + '--:|' * len(METRICS))
        for result in results:
            if protocol in result['test']:
                numbers = _numbers(result['test'][protocol]['metrics'])
                lines.append(_row(result['name'], str(result['seed']), *numbers))
    return lines


def _training(results: list[dict[str, Any]]) -> list[str]:
    lines = ['', '### Training', '']
    head = ('cell', 'validation N@10', 'best epoch', 'epochs', 's an epoch', 'trained')
    lines += [_row(*head), '|---|' + '--:|' * (len(head) - 1)]
    for result in results:
        run, trained = result['validation'], result['trained_parameters']
        lines.append(
            _row(
                result['name'],
                f'{run["metrics"]["N@10"]:.4f}',
                str(run.get('best_epoch', '-')),
                str(run.get('epochs', '-')),
                f'{run["seconds_per_epoch"]:.0f}' if 'epochs' in run else '-',
                '-' if trained is None else f'{trained:,}',
            )
        )
    lines += ['', 'Seconds are of a machine that was doing other work as well.', '']
    for result in results:
        note = f' Backbone: {result["backbone"]}.' if result.get('backbone') else ''
        commit, trained = result['commit'], result['validation'].get('commit')
        at = f'at {commit[:12]}' if commit else 'outside a checkout'
        if trained and trained != commit:
            at += f', trained at {trained[:12]}'
        lines.append(f'- `{result["name"]}`: `{result["command"]}` {at}.{note}')
    return lines


def _printed(dataset: str) -> list[str]:
    lines = ['', '### Printed by others', '']
    for table in json.loads(EXPECTED.read_text()).values():
        lines += [f'{table["source"]}:', '', _row('model', *METRICS)]
        lines.append('|---|' + '--:|' * len(METRICS))
        for name, row in table['rows'].items():
            lines.append(_row(name, *_numbers(row[dataset])))
        lines.append('')
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('folder', type=Path)
    args = parser.parse_args()
    results = [json.loads(path.read_text()) for path in args.folder.glob('*.json')]
    results.sort(key=lambda r: (r['dataset'], r['validation']['metrics']['N@10']))
    lines = ['# Results', '', 'Validation N@10 chose the weights.']
    for dataset in dict.fromkeys(result['dataset'] for result in results):
        own = [result for result in results if result['dataset'] == dataset]
        lines += ['', f'## {dataset.capitalize()}']
        lines += [*_measured(own), *_training(own), *_printed(dataset)]
    (args.folder / 'RESULTS.md').write_text('\n'.join(lines).rstrip() + '\n')
    print(args.folder / 'RESULTS.md')


if __name__ == '__main__':
    main()
