from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from tests.shop import write_llm, write_shop

from .running import error, hellm


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
        '--llm', write_llm(tmp_path / 'llm'), 'llm.num_layers=null',
        f'llm.tables.graph={shop / "graph"}', f'llm.tables.seq={shop / "seq"}',
        'llm.prefix.rank=2', 'llm.prefix.hidden_channels=4',
    ).stdout  # fmt: skip
    assert 'validation' in output
    assert 'mask=seen' in hellm('evaluate', out).stdout
    assert 'User u01' in hellm('recommend', out, '-u', 'u01', '-k', 1).stdout


def test_without_validation_no_table_is_printed(tmp_path: Path) -> None:
    arguments = ['pretrain', 'lightgcn', *write_shop(tmp_path), 'train.split=all']
    output = hellm(*arguments, '--out', tmp_path / 'run').stdout
    assert output.endswith('run: trained on the validation items, not validated\n')


def test_ensemble_of_runs(shop: Path, tmp_path: Path) -> None:
    arguments = [
        *write_shop(shop),
        f'ensemble.members={{seq: {shop / "seq"}, graph: {shop / "graph"}}}',
        'ensemble.grid=[0, 0.5, 2]',
        'eval.ks=[3, 5, 10]',  # wider than a terminal's 80 columns
    ]
    out = tmp_path / 'run'
    printed = hellm('ensemble', *arguments, '--out', out).stdout
    found = json.loads((out / 'metrics.json').read_text())
    assert set(found['weights']) == {'seq', 'graph'}
    for name, weight in found['weights'].items():
        value = found['members'][name]['metrics']['N@10']
        assert re.search(rf'{name} +│ +{weight:g} │.*{value:.4f}', printed)
    value = found['metrics']['N@10']
    assert re.search(rf'all together +│ +│.*{value:.4f}', printed)
    assert '…' not in printed
    again = hellm('ensemble', 'ensemble', *arguments, '--out', out)
    assert again.stdout == printed
    other = error('ensemble', *arguments, 'ensemble.grid=[1]', '--out', out)
    assert "another configuration: 'ensemble.grid' is [0.0, 0.5, 2.0] there" in other
    assert 'mask=seen' in hellm('evaluate', out).stdout
    lists = hellm(
        'recommend', out, '-u', 'u01', '--history', 'p001 p004', '-k', 1
    ).stdout
    assert 'User u01' in lists
    assert 'New user 1' in lists
    assert 'rows' in hellm('recommend', out, '--all', '-o', tmp_path / 'x.csv').stdout
    shutil.rmtree(out / 'members' / 'seq')
    assert "'ensemble.members.seq' needs to be the folder" in error('evaluate', out)


def test_what_cannot_be_combined(shop: Path, tmp_path: Path) -> None:
    members = [*write_shop(shop), f'ensemble.members={{a: {shop / "seq"}, b: nowhere}}']
    message = error('ensemble', *members, '--out', tmp_path / 'run')
    assert "'ensemble.members.b' needs to be the folder of a run" in message
    message = error('ensemble', 'sasrec', '--out', tmp_path / 'run')
    assert "'ensemble' needs a recipe with a section 'ensemble'" in message
    message = error('ensemble', 'ensemble.member=3', '--out', tmp_path / 'run')
    assert "nearest known key is 'ensemble.members'" in message
