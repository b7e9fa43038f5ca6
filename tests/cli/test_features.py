from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.encoders import write_image_encoder, write_text_encoder
from tests.preparation.shop import NO_TEXT, NUM_ITEMS, write_orders, write_pictures

from .running import error, hellm


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_orders(tmp_path)
    return tmp_path


def test_text_and_pictures(folder: Path) -> None:
    output = hellm(
        'features', '--items', 'catalogue.csv', '--item-id', 'sku', '--title', 'name',
        '--text', '{name}. {brand}',
        '--text-encoder', write_text_encoder(folder / 'bert'),
        '--images', write_pictures(folder / 'photos'),
        '--image-encoder', write_image_encoder(folder / 'clip'),
        '--precision', 'fp32', '--cache', 'cache', '--out', 'x.safetensors',
    ).stdout  # fmt: skip
    features = load_file('x.safetensors')
    assert features['text'].shape == (NUM_ITEMS, 16)
    assert features['image'].shape == (NUM_ITEMS, 12)
    assert features['text'].isnan().all(dim=1).nonzero().view(-1).tolist() == [NO_TEXT]
    assert re.search(r'template +│ \{name\}\. \{brand\} ', output)
    assert 'x.safetensors: image' in output
    assert (folder / 'cache').is_dir()


def test_errors_are_one_line(folder: Path) -> None:
    items = ['--items', 'catalogue.csv', '--out', 'x.safetensors']
    assert "'item_id'" in error('features', *items)
    message = error('features', *items, '--item-id', 'sku', '--text', '{nam}')
    assert "'--text' may name" in message
    assert "'nam'" in message
    assert not (folder / 'x.safetensors').exists()


def test_errors_name_the_option_as_it_is_typed(folder: Path) -> None:
    (folder / 'empty').mkdir()
    given = ['--item-id', 'sku', '--text', '{name}', '--text-encoder', 'empty']
    given = ['--items', 'catalogue.csv', '--out', 'x.safetensors', *given]
    message = error('features', *given)
    assert "Error: '--text-encoder' needs 'minilm'" in message
