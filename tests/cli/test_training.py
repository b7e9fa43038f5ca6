from __future__ import annotations

import json
import re
from pathlib import Path

from tests.shop import write_llm, write_shop

from .running import hellm


def test_pretrain_prints_validation_metrics(tmp_path: Path) -> None:
    out = tmp_path / 'run'
    output = hellm(
        'pretrain', 'lightgcn', *write_shop(tmp_path), 'eval.ks=[3,10]', '--out', out
    ).stdout
    metrics = json.loads((out / 'metrics.json').read_text())['metrics']
    assert 'validation' in output
    for name, value in metrics.items():
        assert re.search(rf'{name} +│ {value:.4f}', output)
    assert (out / 'config.yaml').is_file()


def test_finetune_with_another_language_model(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    output = hellm(
        'finetune', 'finetune_best', *write_shop(shop), '--out', out,
        '--llm', write_llm(tmp_path / 'llm'), f'llm.tables.graph={shop / "graph"}',
        f'llm.tables.seq={shop / "seq"}', 'llm.prefix.rank=2',
        'llm.prefix.hidden_channels=4',
    ).stdout  # fmt: skip
    assert 'validation' in output
    assert 'mask=seen' in hellm('evaluate', out).stdout
    assert 'User u01' in hellm('recommend', out, '-u', 'u01', '-k', 1).stdout
