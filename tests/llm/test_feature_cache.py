import json

import pytest
import torch

from hellm_pyg.llm import feature_cache
from hellm_pyg.llm.feature_cache import cache_folder, cache_key, cached_rows

SETTINGS = {'encoder': 'a', 'weights': 'w', 'pooling': 'mean'}
CONTENT = ['one', 'two', 'three', 'four', 'five']


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_cache, 'SHARD_SIZE', 2)


class Encoder:
    """Gives rows of the position and the length; may stop before a range."""

    def __init__(self, stop_at=None):
        self.ranges = []
        self.stop_at = stop_at

    def __call__(self, rows, advance):
        if len(self.ranges) == self.stop_at:
            raise KeyboardInterrupt
        self.ranges.append((rows.start, rows.stop))
        advance(len(rows))
        return torch.tensor([[row, len(CONTENT[row])] for row in rows]).float()


def read(folder, encoder, settings=SETTINGS, content=CONTENT):
    return cached_rows(folder, settings, content, encoder, 'rows', False)


def test_a_second_call_encodes_nothing(tmp_path):
    first, second = Encoder(), Encoder()
    x, key = read(tmp_path, first)
    assert first.ranges == [(0, 2), (2, 4), (4, 5)]
    assert x.tolist() == [[0, 3], [1, 3], [2, 5], [3, 4], [4, 4]]
    again, same_key = read(tmp_path, second)
    assert second.ranges == []
    assert torch.equal(x, again)
    assert key == same_key == cache_key(SETTINGS, CONTENT)
    settings = json.loads((tmp_path / key / 'settings.json').read_text())
    assert settings == {'rows': 5, **SETTINGS}


@pytest.mark.parametrize('stop_at', [0, 1, 2])
def test_a_stopped_call_goes_on(tmp_path, stop_at):
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, Encoder(stop_at))
    encoder = Encoder()
    x, _ = read(tmp_path, encoder)
    assert encoder.ranges == [(0, 2), (2, 4), (4, 5)][stop_at:]
    assert torch.equal(x, read(tmp_path / 'whole', Encoder())[0])


def test_other_input_is_encoded(tmp_path):
    read(tmp_path, Encoder())
    for settings, content in [
        (SETTINGS | {'weights': 'v'}, CONTENT),
        (SETTINGS | {'pooling': 'cls'}, CONTENT),
        (SETTINGS, ['One', *CONTENT[1:]]),
        (SETTINGS, CONTENT[:4]),
        (SETTINGS, ['onetwo', '', *CONTENT[2:]]),
    ]:
        encoder = Encoder()
        read(tmp_path, encoder, settings, content)
        assert encoder.ranges
    renamed = Encoder()  # the weights tell what an encoder is, not its folder
    read(tmp_path, renamed, SETTINGS | {'encoder': 'b'})
    assert renamed.ranges == []


@pytest.mark.parametrize('damage', ['cut', 'empty', 'shape', 'name'])
def test_a_damaged_shard_is_made_anew(tmp_path, damage):
    x, key = read(tmp_path, Encoder())
    shard = tmp_path / key / 'rows-000000002-000000004.safetensors'
    if damage == 'cut':
        shard.write_bytes(shard.read_bytes()[:-3])
    elif damage == 'empty':
        shard.write_bytes(b'')
    else:
        other = {'y': x[2:4]} if damage == 'name' else {'x': x[:1]}
        feature_cache.save_tensors(shard, other)
    encoder = Encoder()
    again, _ = read(tmp_path, encoder)
    assert encoder.ranges == [(2, 4)]
    assert torch.equal(x, again)
    assert read(tmp_path, Encoder(0))[0].equal(x)


def test_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder(None) == tmp_path / 'hellm_pyg' / 'features'
    assert cache_folder(tmp_path / 'own') == tmp_path / 'own'


def test_a_cache_that_is_a_file(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match=r"'cache' needs a folder.*file"):
        read(tmp_path / 'file', Encoder())
