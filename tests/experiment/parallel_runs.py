"""A script that runs whole experiments; run by ``test_processes.py``.

The processes are forked, which is safe here only: nothing has computed before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hellm_pyg.data
import hellm_pyg.llm.recommender
import hellm_pyg.nn.models
import hellm_pyg.transforms  # noqa: F401  (before the fork, once)
from hellm_pyg import experiment
from hellm_pyg.checkpoint import load_json, save_json
from hellm_pyg.config import Config, load_config
from tests.training.parallel import launch

# 30 users make 5 batches: the last step has one, so that the second process has none.
SMALL = ['train.batch_size=7', 'train.epochs=3', 'train.eval_every=1', 'train.clip=0.5']
# Dropout draws other numbers in every process.
NO_DROPOUT = [
    'llm.dropout=0',
    'llm.head_dropout=0',
    'llm.lora.lora_dropout=0',
    'llm.prefix.dropout=0',
]


def run(run_dir: Path, rank: int, processes: int) -> None:
    shop = run_dir.parent
    common = [*load_json(shop / 'overrides.json'), *SMALL]
    common.append(f'train.accumulate={4 // processes}')

    def config(recipe: str, *overrides: str) -> Config:
        return load_config(recipe, [*common, *overrides])

    found: dict[str, Any] = {
        'graph': experiment.pretrain(
            config('pretrain_best', 'model.embedding_dim=8'), run_dir / 'graph'
        ),
        'seq': experiment.pretrain(
            config('sasrec', 'model.embedding_dim=8', 'model.dropout=0'),
            run_dir / 'seq',
        ),
        'floor': experiment.pretrain(
            config('sasrec', 'model.name=Popularity'), run_dir / 'floor'
        ),
        'llm': experiment.finetune(
            config(
                'finetune_best',
                f'llm.name={shop / "tiny"}',
                'llm.num_layers=null',
                f'llm.tables.graph={shop / "1" / "graph"}',  # of the single process
                f'llm.tables.seq={shop / "1" / "seq"}',
                'llm.prefix.rank=2',
                'train.precision=fp32',
                'train.activation_checkpointing=true',
                *NO_DROPOUT,
            ),
            run_dir / 'llm',
        ),
    }
    found['sum'] = experiment.ensemble(
        config(
            'ensemble',
            f'ensemble.members.graph={shop / "1" / "graph"}',
            f'ensemble.members.seq={shop / "1" / "seq"}',
            f'ensemble.members.hellm={shop / "1" / "llm"}',
            'ensemble.grid=[0.0, 0.5]',
        ),
        run_dir / 'sum',
    )
    for name in ('graph', 'seq', 'floor', 'llm', 'sum'):
        for size in (4, 512):  # with 512 the second process has no batch
            result = experiment.evaluate_run(
                shop / '1' / name, 'test', [f'eval.batch_size={size}']
            )
            found[f'{name}, {size}'] = [result.metrics, result.rank.tolist()]
    save_json(run_dir / f'found-{rank}.json', found)


def main(folder: str) -> None:
    """All runs that the tests look at."""
    for processes in (1, 2):
        launch(run, Path(folder) / str(processes), processes)


if __name__ == '__main__':
    main(sys.argv[1])
