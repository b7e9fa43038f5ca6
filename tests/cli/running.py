"""Commands run within the tests' process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from hellm_pyg.cli import app


def hellm(*arguments: object, code: int = 0) -> Result:
    """Runs a command that is to end with an exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exit_code != code and result.exception is not None:
        raise AssertionError(result.output) from result.exception
    assert result.exit_code == code, result.output
    return result


def error(*arguments: object) -> str:
    """The last line of a command that fails."""
    result = hellm(*arguments, code=2)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith('Error: '), result.stderr
    return lines[-1]
