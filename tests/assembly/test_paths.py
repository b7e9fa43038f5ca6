from __future__ import annotations

from pathlib import Path

import pytest

from hellm_pyg import assembly
from hellm_pyg.config import (
    Config,
    DataConfig,
    LLMConfig,
    TrainConfig,
    load_config,
    parse,
)


def test_paths_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('SHOP', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'llm').mkdir()
    data = DataConfig('${SHOP}/a.txt', 'cache', features={'text': '$SHOP/t.npy'})
    tables = {'graph': 'runs/a', 'text': 'features:text', 'own': 'random:8'}
    config = assembly.resolve_paths(Config(data, llm=LLMConfig('llm', tables=tables)))
    assert config.data.interactions == f'{tmp_path}/a.txt'
    assert config.data.root == f'{tmp_path}/cache'
    assert config.data.features == {'text': f'{tmp_path}/t.npy'}
    assert config.data.items is None
    assert config.llm is not None
    assert config.llm.name == f'{tmp_path}/llm'
    assert config.llm.tables == {**tables, 'graph': f'{tmp_path}/runs/a'}
    assert assembly.resolve_paths(config) == config
    distill = {'runs': {'seq': '$SHOP/seq', 'other': 'runs/b'}, 'weight': 0.3}
    train = parse({'distill': distill}, TrainConfig, 'train', 'here')
    found = assembly.resolve_paths(Config(data, train=train)).train.distill
    assert found is not None
    assert found.runs == {'seq': f'{tmp_path}/seq', 'other': f'{tmp_path}/runs/b'}
    assert found.weight == 0.3
    hub = Config(data, llm=LLMConfig('org/model'))
    resolved = assembly.resolve_paths(hub).llm
    assert resolved is not None
    assert resolved.name == 'org/model'


def test_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('HELLM_DATA', raising=False)
    with pytest.raises(ValueError, match=r"'data.interactions'.*'HELLM_DATA'.*not set"):
        assembly.build_data(load_config('sasrec').data)
    with pytest.raises(ValueError, match=r"'data.interactions' needs a file"):
        assembly.build_data(DataConfig())
