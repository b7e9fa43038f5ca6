"""Recommenders of other libraries on the very same split, scored by our evaluator.

    python -m benchmarks.peers implicit_als --dataset beauty --data ../data
    python -m benchmarks.peers rectools_sasrec --dataset beauty --seed 2025 --epochs 3

One command makes the library's own environment (``cache/peers/<library>``), writes the
split into ``runs/<dataset>/<peer>/<seed>`` without the test items, runs the peer's
script in its own process, and scores the lists that it leaves. The result lies beside
those of Table 1, in the same form: ``<dataset>-<peer>-<seed>.json`` in
``benchmarks/results/table1``, or in the folder of ``--results``.
Further arguments go to the script; ``--help`` of it shows them:

    cache/peers/rectools/bin/python benchmarks/peers/rectools_sasrec.py --help

Peers name 200 unseen items a user and more. A held-out item that is not among them is
a miss; metrics at 10 and 20 do not depend on it. What a library cannot read at test
(BPR and VBPR know users by their training items alone) has no numbers of
``history=train+val``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from benchmarks.cell import compact
from benchmarks.peers.environments import environment
from benchmarks.peers.exchange import INFO, write_split
from benchmarks.peers.lists import missed, score_lists, to_split
from hellm_pyg.assembly import build_data
from hellm_pyg.checkpoint import save_json
from hellm_pyg.config import load_config
from hellm_pyg.evaluation import Evaluation, Protocol
from hellm_pyg.training.record import commit

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / 'results' / 'table1'
MASKS = {'train+val': ('seen', 'none'), 'train': ('seen', 'train')}


class Peer(NamedTuple):
    """A recommender of another library.

    Args:
        library: The environment that it runs in, which bears the library's name.
        script: File beside this one.
        arguments: What the script is always given.
    """

    library: str
    script: str
    arguments: tuple[str, ...] = ()


PEERS = {
    'rectools_sasrec': Peer('rectools', 'rectools_sasrec.py'),
    'rectools_sasrec_refit': Peer('rectools', 'rectools_sasrec.py', ('--refit',)),
    'implicit_als': Peer('implicit', 'implicit_factors.py', ('--model=als',)),
    'implicit_bpr': Peer('implicit', 'implicit_factors.py', ('--model=bpr',)),
    'cornac_vbpr': Peer('cornac', 'cornac_vbpr.py'),
}


def main(argv: Sequence[str] | None = None) -> int:
    args, further = _parser().parse_known_args(argv)
    if args.data is not None:
        os.environ['HELLM_DATA'] = str(args.data.absolute())
    peer = PEERS[args.peer]
    python = environment(peer.library, args.environments)
    data, _ = build_data(load_config(args.recipe, [f'dataset={args.dataset}']).data)
    run = Path('runs') / args.dataset / args.peer / str(args.seed)
    run.mkdir(parents=True, exist_ok=True)
    for old in (INFO, 'lists-train.npy', 'lists-train+val.npy'):
        (run / old).unlink(missing_ok=True)
    write_split(run, to_split(data))
    script = [*peer.arguments, f'--seed={args.seed}', *further]
    command = [str(python), str(FOLDER / peer.script), str(run), *script]
    code = subprocess.call(command, env=_own_environment())
    if code != 0:
        print(f'FAILED: {shlex.join(command)}: exit status {code}', file=sys.stderr)
        return 1
    told = f'python -m benchmarks.peers {args.peer} --dataset {args.dataset} --seed '
    told = shlex.join([*shlex.split(told), str(args.seed), *further])
    about = {
        'name': args.peer,
        'dataset': args.dataset,
        'seed': args.seed,
        'cell': args.peer,
        'grid': {},
        'overrides': further,
        'command': told,
        'commit': commit(),
    }
    folder = args.results
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{args.dataset}-{args.peer}-{args.seed}.json'
    save_json(path, {**about, **result(peer, data, run)})
    print(path)
    return 0


def result(peer: Peer, data: HeteroData, run: Path) -> dict[str, Any]:
    """Scores what a peer has left in a folder, as a result of ``benchmarks.run``.

    Raises:
        ValueError: If there are no lists, or they do not fit the data.
    """
    info = json.loads((run / INFO).read_text())
    lists = _read(run)
    metrics: dict[str, float] = {}
    if info['settings'].get('train') != {'split': 'train+val'}:
        if 'train' not in lists:
            raise ValueError(
                f"'{run}' needs lists made from the training items (got none)"
            )
        metrics = score_lists(data, lists['train'], 'val', Protocol()).metrics
    tested: list[Evaluation] = [
        score_lists(data, own, 'test', Protocol(history, mask))  # type: ignore[arg-type]
        for history, own in lists.items()
        for mask in MASKS[history]
    ]
    num_items = int(data['item'].num_nodes)
    test = {str(one.protocol): one.to_dict() for one in tested}
    for one in tested:
        test[str(one.protocol)]['missed'] = missed(one, num_items)
        print(one)
    return {
        'peer': f'{peer.library} {info["versions"][peer.library]}',
        'versions': info['versions'],
        'config': info['settings'],
        'data_fingerprint': data.fingerprint,
        'split_fingerprint': data.split_fingerprint,
        'backbone': None,
        'parameters': info['trained_parameters'],
        'trained_parameters': info['trained_parameters'],
        'seconds': {
            'training': info['validation']['seconds'],
            'evaluation': sum(one.seconds for one in tested),
        },
        'peak_memory_bytes': info['validation']['peak_memory_bytes'],
        'validation': {
            'metrics': metrics,
            'protocol': {'split': 'val', 'history': 'train', 'mask': 'seen'},
            **info['validation'],
        },
        'lists': {'length': max(own.size(1) for own in lists.values())},
        'test': test,
        'ranks': {str(one.protocol): compact(one.rank) for one in tested},
    }


def _read(run: Path) -> dict[str, Tensor]:
    paths = {name: run / f'lists-{name}.npy' for name in MASKS}
    return {
        name: torch.from_numpy(np.load(path)).long()
        for name, path in paths.items()
        if path.is_file()
    }


def _own_environment() -> Mapping[str, str]:
    """Without what would let a peer import from here."""
    return {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'benchmarks.peers',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('peer', choices=PEERS)
    parser.add_argument('--dataset', default='beauty', help='of the recipe')
    parser.add_argument('--recipe', default='lightgcn', help='its data are read')
    parser.add_argument('--seed', type=int, default=2024)
    parser.add_argument('--data', type=Path, help='folder of the data (HELLM_DATA)')
    parser.add_argument('--results', type=Path, default=RESULTS, help='folder')
    parser.add_argument(
        '--environments', type=Path, default=Path('cache/peers'), help='folder'
    )
    return parser


if __name__ == '__main__':
    sys.exit(main())
