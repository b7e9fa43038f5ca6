"""Latency and throughput of recommendations over HTTP, by the number of clients.

    python benchmarks/speed/serving.py runs/beauty/hellm runs/beauty/all
    python benchmarks/speed/serving.py runs/beauty/hellm --clients 1 16 --out FILE

``examples/serve.py`` answers made-up histories on this very machine; a client asks
again once it has its answer, and waiting requests share a forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from hellm_pyg.training.record import commit

SCRIPT = Path(__file__).parents[2] / 'examples' / 'serve.py'
COLUMNS = {
    'median, ms': r'median ([\d.]+) ms',
    '95 %, ms': r'95 % within ([\d.]+) ms',
    'requests/s': r'throughput: ([\d.]+)',
    'requests a pass': r'([\d.]+) requests a forward pass',
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('models', nargs='+', help='folders of runs')
    parser.add_argument('--clients', nargs='+', type=int, default=[1, 4, 16])
    parser.add_argument('--requests', type=int, default=200)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    rows = []
    for model in args.models:
        for clients in args.clients:
            call = [sys.executable, str(SCRIPT), '--model', model]
            call += ['--measure', str(args.requests), '--clients', str(clients)]
            text = subprocess.run(call, check=True, capture_output=True, text=True)
            found = {k: re.search(v, text.stdout) for k, v in COLUMNS.items()}
            values = {k: float(match[1]) for k, match in found.items() if match}
            rows.append({'model': model, 'clients': clients, **values})
    print(f'{os.cpu_count()} cores, {args.requests} requests')
    print(f'| {" | ".join(rows[0])} |\n|---{"|--:" * (len(rows[0]) - 1)}|')
    for row in rows:
        print(f'| {" | ".join(map(str, row.values()))} |')
    if args.out is not None:
        settings = {'requests': args.requests, 'cores': os.cpu_count()}
        settings['commit'] = commit()
        args.out.write_text(json.dumps({'settings': settings, 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
