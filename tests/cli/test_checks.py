from __future__ import annotations

import re
from pathlib import Path

from .running import hellm


def test_doctor() -> None:
    output = hellm('doctor').stdout
    for text in ('versions', 'devices', 'sparse paths', 'OpenMP', 'torch CSR'):
        assert text in output
    memory = hellm('doctor', '--run', 'sasrec', '--users', 9000, '--items', 500).stdout
    assert re.search(r'parameters +│ \d+\.\d KiB', memory)
    assert re.search(r'sum +│ \d+\.\d MiB', memory)


def test_doctor_reads_a_run_folder(shop: Path) -> None:
    assert 'Adam moments' in hellm('doctor', '--run', shop / 'graph').stdout
