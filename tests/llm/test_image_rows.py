import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from PIL import Image

from hellm_pyg.datasets.image_file import MAX_BYTES
from hellm_pyg.llm.image_encoder import ImageEncoder
from hellm_pyg.llm.image_rows import encode_images
from tests.llm.encoders import PROJECTION, picture, save_clip


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clip')
    save_clip(folder)
    return ImageEncoder(str(folder), batch_size=2, precision='fp32')


def test_rows_follow_the_items_and_equal_files_are_encoded_once(
    clip, tmp_path, monkeypatch
):
    red = picture(tmp_path / 'red.jpg', 'red')
    blue = picture(tmp_path / 'blue.png', 'blue')
    green = picture(tmp_path / 'green.webp', 'green')
    copy = tmp_path / 'copy.jpg'
    copy.write_bytes(red.read_bytes())
    assert clip.dim == PROJECTION
    encoded = []
    encode = clip.encode
    monkeypatch.setattr(
        clip, 'encode', lambda pixels: encoded.append(len(pixels)) or encode(pixels)
    )
    paths = [blue, None, red, copy, green, blue]
    x, card = encode_images(paths, clip, tmp_path / 'cache', False)
    assert encoded == [2, 1]
    assert x[1].isnan().all()
    assert torch.equal(x[2], x[3])
    assert torch.equal(x[0], x[5])
    for row, path in enumerate(paths):
        if path is not None:
            torch.testing.assert_close(
                x[row], encode([clip.pixels(Image.open(path).convert('RGB'))])[0]
            )
    assert card['reasons'] == {'no file name': 1}
    assert (card['items'], card['distinct'], card['missing']) == (6, 3, 1)
    order = [4, 3, 2, 1, 0]
    again, _ = encode_images(
        [paths[row] for row in order], clip, tmp_path / 'cache', False
    )
    assert encoded == [2, 1]
    assert torch.equal(again[[0, 2, 4]], x[[4, 2, 0]])
    blue.write_bytes(picture(tmp_path / 'other.png', 'yellow').read_bytes())
    changed, _ = encode_images(paths, clip, tmp_path / 'cache', False)
    assert len(encoded) == 4
    assert not torch.equal(changed[0], x[0])


def test_images_that_cannot_be_used_are_counted(clip, tmp_path, caplog):
    good = picture(tmp_path / 'good.jpg', 'red', (400, 300))
    cut = tmp_path / 'cut.jpg'
    cut.write_bytes(good.read_bytes()[:-800])
    page = tmp_path / 'page.jpg'
    page.write_text('<html>not found</html>')
    bomb = tmp_path / 'bomb.png'
    Image.new('1', (20_000, 20_000)).save(bomb)
    strip = picture(tmp_path / 'strip.png', 'blue', (8, 8000))
    pipe = tmp_path / 'pipe.jpg'
    os.mkfifo(pipe)
    paths = [
        cut,
        good,
        page,
        bomb,
        strip,
        pipe,
        tmp_path / 'gone.jpg',
        tmp_path,
        None,
        cut,
    ]
    for _ in range(2):  # from the cache, too
        x, card = encode_images(paths, clip, tmp_path / 'cache', False)
        assert x.isnan().all(dim=1).tolist() == [row != 1 for row in range(10)]
        assert card['reasons'] == {
            'damaged': 2,
            'no file name': 1,
            'not an image': 1,
            'not found': 3,
            'too many pixels': 1,
            'too narrow': 1,
        }
        assert card['missing'] == 9
        assert any(
            'strip.png' in line and 'narrow' in line for line in card['problems']
        )
    assert '9 of 10 items have no image features' in caplog.text


def test_a_file_without_permission_is_counted(clip, tmp_path):
    if os.name == 'nt' or os.geteuid() == 0:
        pytest.skip('everything may be read here')
    good = picture(tmp_path / 'good.jpg', 'red')
    secret = picture(tmp_path / 'secret.jpg', 'blue')
    secret.chmod(stat.S_IWUSR)
    _, card = encode_images([good, secret], clip, tmp_path / 'cache', False)
    assert card['reasons'] == {'not readable': 1}


@pytest.mark.parametrize(
    'error', [OSError(errno.EMFILE, 'Too many open files'), MemoryError()]
)
def test_a_failure_that_passes_is_not_kept(clip, tmp_path, monkeypatch, error):
    paths = [picture(tmp_path / name, name[:-4]) for name in ('red.jpg', 'blue.jpg')]
    read_bytes = Path.read_bytes

    def fail(path):
        if path == paths[1]:
            raise error
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'read_bytes', fail)
        with pytest.raises(type(error)):
            encode_images(paths, clip, tmp_path / 'cache', False)
    x, card = encode_images(paths, clip, tmp_path / 'cache', False)
    assert x.isfinite().all()
    assert card['missing'] == 0


def test_no_image_at_all(clip, tmp_path):
    page = tmp_path / 'page.jpg'
    page.write_text('<html>')
    for paths, reason in [
        ([None, None], 'no item names a file'),
        ([tmp_path / 'gone.jpg', None], r'gone\.jpg.* is no file'),
        ([page], r'page\.jpg'),
    ]:
        with pytest.raises(ValueError, match=rf"'images' has no image.*{reason}"):
            encode_images(paths, clip, tmp_path / 'cache', False)


def test_large_files_are_not_decoded(clip, tmp_path):
    good, large = picture(tmp_path / 'a.png', 'red'), tmp_path / 'b.png'
    picture(large, 'blue', (300, 300))
    with large.open('ab') as file:
        file.truncate(MAX_BYTES + 1)
    _, card = encode_images([good, large], clip, tmp_path / 'cache', False)
    assert card['reasons'] == {'too large': 1}


def test_stopped_between_shards_goes_on(clip, tmp_path, monkeypatch):
    monkeypatch.setattr('hellm_pyg.llm.feature_cache.SHARD_SIZE', 2)
    colours = ('red', 'blue', 'green', 'yellow', 'black')
    paths = [picture(tmp_path / f'{c}.png', c) for c in colours]
    whole, _ = encode_images(paths, clip, tmp_path / 'whole', False)
    encode, calls = clip.encode, []

    def stops(pixels):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(clip, 'encode', stops)
    with pytest.raises(KeyboardInterrupt):
        encode_images(paths, clip, tmp_path / 'cache', False)
    monkeypatch.setattr(
        clip, 'encode', lambda pixels: calls.append(len(pixels)) or encode(pixels)
    )
    x, _ = encode_images(paths, clip, tmp_path / 'cache', False)
    assert calls == [2, 2, 1]
    assert torch.equal(x, whole)
