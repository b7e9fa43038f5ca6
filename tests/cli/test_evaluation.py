from __future__ import annotations

import json
import re
from pathlib import Path

from .running import hellm


def test_evaluate_prints_protocol_and_metrics(shop: Path) -> None:
    output = hellm('evaluate', shop / 'graph').stdout
    assert 'test, history=train+val, mask=seen' in output
    other = hellm(
        'evaluate', shop / 'graph', 'eval.ks=[7]', '--split', 'val',
        '--history', 'train', '--mask', 'none',
    ).stdout  # fmt: skip
    assert 'val, history=train, mask=none' in other
    results = json.loads((shop / 'graph' / 'evaluation.json').read_text())
    value = results['val, history=train, mask=none']['metrics']['N@7']
    assert re.search(rf'N@7 +│ {value:.4f}', other)
