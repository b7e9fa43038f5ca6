from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hellm_pyg.cli import _split_ids, app
from tests.shop import NUM_ITEMS, NUM_USERS, write_llm, write_shop

COMMANDS = (
    'prepare', 'pretrain', 'finetune', 'evaluate', 'recommend', 'benchmark', 'doctor',
    'demo',
)  # fmt: skip


def hellm(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exit_code != code and result.exception is not None:
        raise AssertionError(result.output) from result.exception
    assert result.exit_code == code, result.output
    return result


def error(*arguments: object) -> str:
    result = hellm(*arguments, code=2)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith('Error: '), result.stderr
    return lines[-1]


@pytest.fixture(scope='module')
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('shop')
    arguments = write_shop(folder)
    small = ['model.embedding_dim=8', 'train.eval_every=1']
    for name, recipe in (('graph', 'pretrain_best'), ('seq', 'sasrec')):
        hellm('pretrain', recipe, *arguments, *small, '--out', folder / name)
    return folder


def test_prepare_prints_the_data_card(tmp_path: Path) -> None:
    output = hellm('prepare', 'sasrec', *write_shop(tmp_path)).stdout
    assert re.search(rf'users +│ {NUM_USERS} ', output)
    assert re.search(rf'items +│ {NUM_ITEMS} ', output)
    assert re.search(r'text features +│ 3 wide', output)
    bare = [text for text in write_shop(tmp_path) if text.startswith('data')]
    assert hellm('prepare', *bare).stdout == output


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


def test_recommend_in_original_ids(shop: Path) -> None:
    output = hellm(
        'recommend', shop / 'graph', '--user', 'u03', '-u', 'u04',
        '--history', 'p001 p004', '-k', '2',
    ).stdout  # fmt: skip
    assert [line for line in output.splitlines() if 'ser ' in line] == [
        'User u03', 'User u04', 'New user 1'
    ]  # fmt: skip
    rows = re.findall(r'│ ([12]) +│ (p\d{3}) │ Thing, (\d+) ', output)
    assert [int(rank) for rank, _, _ in rows] == [1, 2] * 3
    assert all(int(item[1:]) == int(title) for _, item, title in rows)
    with (shop / 'log.csv').open() as file:
        seen = {r['sku'] for r in csv.DictReader(file) if r['customer'] == 'u03'}
    assert not seen & {item for _, item, _ in rows[:2]}
    assert not {'p001', 'p004'} & {item for _, item, _ in rows[4:]}


@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'parquet'])
def test_recommend_to_all(shop: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f'top.{ending}'
    output = hellm('recommend', shop / 'seq', '--all', '-k', 3, '--out', out).stdout
    assert f'{3 * NUM_USERS} rows' in output
    if ending == 'csv':
        with out.open(newline='') as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    elif ending == 'jsonl':
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        from pyarrow import parquet

        rows = parquet.read_table(out).to_pylist()
    assert [row['user'] for row in rows[::3]] == [f'u{u:02d}' for u in range(NUM_USERS)]
    assert {str(row['rank']) for row in rows} == {'1', '2', '3'}


def test_recommend_to_a_file_for_some(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / 'some.jsonl'
    hellm('recommend', shop / 'seq', '-u', 'u07', '-k', 4, '-o', out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row['user'], row['rank']) for row in rows] == [
        ('u07', rank) for rank in (1, 2, 3, 4)
    ]
    hellm('recommend', shop / 'seq', '-u', 'u07', '-k', NUM_ITEMS, '-o', out,
          '--include-seen')  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row['item'] for row in rows}) == NUM_ITEMS


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


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['prepare', 'sasrek'], "the nearest is 'sasrec'"),
        (['prepare', 'sasrec', 'data.knnn=3'], "nearest known key is 'data.knn'"),
        (['prepare', 'sasrec', 'data.knn=many'], 'an integer'),
        (['prepare', 'data.interactions=/no/such.csv'], '/no/such.csv'),
        (['pretrain', 'sasrec', 'model.name=SASRecc'], "nearest is 'SASRec'"),
        (['pretrain', 'sasrec', 'model.hedas=3'], "nearest is 'model.num_heads'"),
        (['pretrain', 'finetune_best'], "'pretrain' needs a recipe"),
        (['evaluate', '/no/run'], "'run' needs to be the folder of a run"),
        (['recommend', '/no/run', '-u', '1'], "'run' needs to be the folder"),
        (['recommend', '/no/run'], "give '--user ID'"),
        (['recommend', '/no/run', '--all'], "'--all' needs a file"),
        (['doctor', '--run', 'sasrek'], "the nearest is 'sasrec'"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    if arguments[0] == 'pretrain':
        arguments = [*arguments, '--out', str(tmp_path / 'run')]
        arguments += write_shop(tmp_path)
    assert message in error(*arguments)
    assert not (tmp_path / 'run').exists()


def test_unknown_ids_in_recommend(shop: Path) -> None:
    assert "unknown user id 'u99'" in error('recommend', shop / 'seq', '-u', 'u99')
    message = error('recommend', shop / 'seq', '--history', 'p001 p999')
    assert "unknown item id 'p999'" in message
    message = error('recommend', shop / 'seq', '-u', 'u01', '-k', NUM_ITEMS)
    assert "'k' needs to be at most" in message
    assert "user 'u01' has" in message


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(app, ['--debug', 'prepare', 'sasrek'])
    assert isinstance(result.exception, ValueError)


def test_stopped_training_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hellm_pyg import experiment

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, 'pretrain', stop)
    monkeypatch.setattr(sys, 'argv', ['hellm', 'pretrain', 'sasrec', 'a.b=[1, 2]'])
    result = hellm('pretrain', 'sasrec', '--out', tmp_path / 'run', code=130)
    assert "hellm pretrain sasrec 'a.b=[1, 2]'" in result.stderr


@pytest.mark.parametrize('command', COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    if command == 'benchmark':
        pytest.skip('its --help is that of the script')
    output = hellm(command, '--help').stdout
    assert re.search(rf'^ +hellm {command}', output, re.MULTILINE)


def test_help_lists_the_commands_without_importing_torch() -> None:
    code = (
        'import sys; from hellm_pyg.cli import app; app(["--help"], prog_name="hellm",'
        'standalone_mode=False); print("torch" in sys.modules)'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == 'False'
    for command in COMMANDS:
        assert re.search(rf'^ +{command} ', run.stdout, re.MULTILINE)


def test_doctor() -> None:
    output = hellm('doctor').stdout
    for text in ('versions', 'devices', 'sparse paths', 'OpenMP', 'torch CSR'):
        assert text in output
    memory = hellm('doctor', '--run', 'sasrec', '--users', 9000, '--items', 500).stdout
    assert re.search(r'parameters +│ \d+\.\d KiB', memory)
    assert re.search(r'sum +│ \d+\.\d MiB', memory)


def test_doctor_reads_a_run_folder(shop: Path) -> None:
    assert 'Adam moments' in hellm('doctor', '--run', shop / 'graph').stdout


def test_benchmark_runs_from_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def call(command: list[str], cwd: Path) -> int:
        calls.append((command[1:], cwd))
        return 3

    monkeypatch.setattr('hellm_pyg.cli.subprocess.call', call)
    (tmp_path / 'benchmarks').mkdir()
    (tmp_path / 'benchmarks' / 'run.py').touch()
    monkeypatch.chdir(tmp_path)
    hellm('benchmark', 'table.yaml', '--resume', code=3)
    assert calls == [(['-m', 'benchmarks.run', 'table.yaml', '--resume'], tmp_path)]


def test_benchmark_without_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('hellm_pyg.cli.__file__', str(tmp_path / 'a' / 'cli.py'))
    assert 'checkout of the repository' in error('benchmark')


def test_demo_is_handed_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    module = types.ModuleType('hellm_pyg.demo')
    module.main = seen.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, 'hellm_pyg.demo', module)
    hellm('demo', 'x')
    assert seen == [['x']]
    assert 'No such option' in hellm('demo', '--fast', code=2).stderr
    assert len(seen) == 1


@pytest.mark.parametrize(
    ('line', 'ids'),
    [
        (' a  b ', ['a', 'b']),
        ('"red shoe" hat-7', ['red shoe', 'hat-7']),
        ("it's back\\slash", ["it's", 'back\\slash']),
        ('', []),
    ],
)
def test_ids_of_a_history(line: str, ids: list[str]) -> None:
    assert _split_ids(line) == ids


def test_recommend_from_data_that_have_moved(shop: Path, tmp_path: Path) -> None:
    arguments = ['recommend', shop / 'seq', '-u', 'u01', '-k', 2]
    moved = [text for text in write_shop(tmp_path) if text.startswith('data.')]
    assert hellm(*arguments, *moved).stdout == hellm(*arguments).stdout


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_run(*arguments: object) -> None:
        raise ImportError('bitsandbytes is missing')

    monkeypatch.setattr('hellm_pyg.experiment.load_run', load_run)
    assert 'bitsandbytes' in error('recommend', 'run', '-u', '1')
