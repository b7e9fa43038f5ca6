from __future__ import annotations

import json
import re
from pathlib import Path

from tests.shop import write_shop

from .running import error, hellm


def test_doctor() -> None:
    output = hellm('doctor').stdout
    for text in ('versions', 'devices', 'sparse paths', 'OpenMP', 'torch CSR'):
        assert text in output
    memory = hellm('doctor', '--run', 'sasrec', '--users', 9000, '--items', 500).stdout
    assert re.search(r'parameters +│ \d+\.\d KiB', memory)
    assert re.search(r'sum +│ \d+\.\d MiB', memory)


def test_doctor_needs_the_option_for_a_run() -> None:
    for arguments in (['finetune_best'], ['--users', 5]):
        assert "'--run' needs the recipe" in error('doctor', *arguments)


def test_doctor_takes_one_size_alone(shop: Path) -> None:
    own, more = (
        hellm('doctor', '--run', shop / 'graph', *sizes).stdout
        for sizes in ([], ['--items', 90_000])
    )
    assert re.search(r'sum +│ \d+\.\d [KM]iB', own)
    assert re.search(r'sum +│ \d+\.\d [MG]iB', more)
    assert own != more


def test_doctor_reads_a_run_folder(shop: Path) -> None:
    assert 'Adam moments' in hellm('doctor', '--run', shop / 'graph').stdout


def test_doctor_sums_what_members_hold(shop: Path, tmp_path: Path) -> None:
    folders = {name: str(shop / name) for name in ('graph', 'seq')}
    members = f'ensemble.members={json.dumps(folders)}'
    arguments = [*write_shop(shop), members]
    planned = hellm('doctor', '--run', 'ensemble', *arguments).stdout
    assert 'memory of ranking' in planned
    for row in ('graph', 'seq', 'graphs', 'scores of a validation batch', 'sum'):
        assert re.search(rf'{row} +│ \d', planned)
    hellm('ensemble', *arguments, '--out', tmp_path / 'run')
    built = hellm('doctor', '--run', tmp_path / 'run').stdout
    assert built.splitlines()[1:] == planned.splitlines()[1:]
    message = error('doctor', '--run', 'ensemble', '--users', 9, '--items', 9)
    assert "'ensemble.members.hellm' needs to be the folder of a run" in message
    assert 'train it first' in message


def test_doctor_knows_no_such_run() -> None:
    message = error('doctor', '--run', 'runs/sasrec')
    assert "'--run' is neither the folder of a run, nor a file, nor" in message
    assert "the nearest is 'sasrec'" in message


def test_doctor_refuses_folders_of_no_run(shop: Path, tmp_path: Path) -> None:
    message = error('doctor', '--run', tmp_path)
    assert "'run' needs to be the folder of a run" in message
    assert "without 'config.yaml'" in message
    config = (shop / 'graph' / 'config.yaml').read_text()
    (tmp_path / 'config.yaml').write_text(config[: config.index('train:')])
    message = error('doctor', '--run', tmp_path, '--users', 9, '--items', 9)
    assert "config.yaml' is damaged" in message
    assert "'train', 'eval'" in message
