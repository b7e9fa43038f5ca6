from __future__ import annotations

from pathlib import Path

import pytest

from tests.encoders import write_image_encoder, write_text_encoder


@pytest.fixture(scope='session')
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_text_encoder(tmp_path_factory.mktemp('encoders') / 'text'))


@pytest.fixture(scope='session')
def image_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_image_encoder(tmp_path_factory.mktemp('encoders') / 'image'))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
