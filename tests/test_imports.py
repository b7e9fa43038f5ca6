"""Who may import whom, read off the syntax trees."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'hellm_pyg'
FILES = sorted(PACKAGE.rglob('*.py'))

# Module prefix (most specific first) to what it may import from the package.
RULES = {
    'hellm_pyg.nn.models': {
        'hellm_pyg.nn',
        'hellm_pyg.data.batch',
        'hellm_pyg.data.features',
        'hellm_pyg.indices',
    },
    'hellm_pyg.nn': {'hellm_pyg.nn', 'hellm_pyg.indices'},
    'hellm_pyg.data': {'hellm_pyg.data', 'hellm_pyg.indices'},
    'hellm_pyg.transforms': {'hellm_pyg.transforms', 'hellm_pyg.data'},
    'hellm_pyg.datasets': {
        'hellm_pyg.datasets',
        'hellm_pyg.data',
        'hellm_pyg.checkpoint',
    },
    'hellm_pyg.llm': {
        'hellm_pyg.llm',
        'hellm_pyg.nn.aggr',
        'hellm_pyg.nn.parameter_names',
        'hellm_pyg.nn.scoring',
        'hellm_pyg.nn.smoothing',
        'hellm_pyg.nn.soft_targets',
        'hellm_pyg.data.batch',
        'hellm_pyg.datasets.ids',
        'hellm_pyg.datasets.features',
        'hellm_pyg.datasets.image_file',
        'hellm_pyg.datasets.item_table',
        'hellm_pyg.datasets.item_text',
        'hellm_pyg.datasets.tables',
        'hellm_pyg.checkpoint',
        'hellm_pyg.keys',
        'hellm_pyg.precision',
    },
    'hellm_pyg.evaluation': {
        'hellm_pyg.evaluation',
        'hellm_pyg.data',
        'hellm_pyg.indices',
        'hellm_pyg.nn.standardize',
    },
    'hellm_pyg.training': {
        'hellm_pyg.training',
        'hellm_pyg.evaluation',
        'hellm_pyg.checkpoint',
        'hellm_pyg.config',
        'hellm_pyg.data',
        'hellm_pyg.datasets.ids',
        'hellm_pyg.nn.soft_targets',
        'hellm_pyg.precision',
    },
    'hellm_pyg.checkpoint': set(),
    'hellm_pyg.precision': set(),
    'hellm_pyg.config': {'hellm_pyg.config', 'hellm_pyg.checkpoint'},
    'hellm_pyg.indices': set(),
    'hellm_pyg.keys': set(),
    'hellm_pyg.new_items': {
        'hellm_pyg.evaluation',
        'hellm_pyg.data',
        'hellm_pyg.datasets.ids',
        'hellm_pyg.transforms',
    },
    'hellm_pyg.recommendation': {
        'hellm_pyg.evaluation',
        'hellm_pyg.new_items',
        'hellm_pyg.data',
        'hellm_pyg.datasets.ids',
        'hellm_pyg.checkpoint',
    },
}
ONLY_IN_LLM = {'transformers', 'peft'}
NEVER_AT_TOP = {'faiss', 'pandas', 'pyarrow', 'PIL'}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _imports(nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'relative imports hide who imports whom'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def _within(name: str, prefixes: set[str]) -> bool:
    return any(name == p or name.startswith(f'{p}.') for p in prefixes)


@pytest.mark.parametrize('path', FILES, ids=_module)
def test_import_rules(path: Path) -> None:
    module, tree = _module(path), ast.parse(path.read_text())
    imports = _imports(ast.walk(tree))
    if not _within(module, {'hellm_pyg.llm'}):
        guilty = {name for name in imports if _within(name, ONLY_IN_LLM)}
        assert not guilty, f'{module} imports {guilty}'
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    top = _imports(node for node in ast.walk(tree) if id(node) not in lazy)
    guilty = {name for name in top if _within(name, NEVER_AT_TOP)}
    assert not guilty, f'{module} imports {guilty} at top level'
    for prefix, allowed in RULES.items():
        if _within(module, {prefix}):
            own = {name for name in imports if _within(name, {'hellm_pyg'})}
            guilty = {name for name in own if not _within(name, allowed)}
            assert not guilty, f'{module} imports {guilty}'
            break


def test_nobody_imports_the_command_line() -> None:
    for path in FILES:
        if not _within(_module(path), {'hellm_pyg.cli', 'hellm_pyg.__main__'}):
            names = _imports(ast.walk(ast.parse(path.read_text())))
            assert not {n for n in names if _within(n, {'hellm_pyg.cli'})}, path


def test_layers_need_no_language_model_packages(tmp_path: Path) -> None:
    blocked = tmp_path / 'blocked'
    for name in ('transformers', 'peft', 'faiss'):
        (blocked / name).mkdir(parents=True)
        (blocked / name / '__init__.py').write_text(
            f'raise ImportError("{name} is blocked")'
        )
    code = (
        'import torch, hellm_pyg\n'
        'from hellm_pyg.nn import LightHypergraphConv\n'
        'x = LightHypergraphConv()(torch.eye(2), torch.tensor([[0, 1], [0, 0]]))\n'
        'assert x.shape == (2, 2)\n'
    )
    path = os.pathsep.join([str(blocked), str(ROOT)])
    run = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
