from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hellm_pyg.cli import app
from tests.shop import write_shop

from .running import error, hellm

COMMANDS = (
    'prepare', 'features', 'pretrain', 'finetune', 'evaluate', 'recommend', 'doctor',
    'demo', 'benchmark',
)  # fmt: skip


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


# The --help of 'benchmark' is that of the script.
@pytest.mark.parametrize('command', [c for c in COMMANDS if c != 'benchmark'])
def test_help_shows_an_example(command: str) -> None:
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


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_run(*arguments: object) -> None:
        raise ImportError('bitsandbytes is missing')

    monkeypatch.setattr('hellm_pyg.experiment.load_run', load_run)
    assert 'bitsandbytes' in error('recommend', 'run', '-u', '1')
