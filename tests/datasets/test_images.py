import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from io import BytesIO

import pytest

from hellm_pyg.checkpoint import HOST
from hellm_pyg.datasets.image_file import ImageError, decode_image, read_image
from hellm_pyg.datasets.images import HOST_FAILURES, fetch_images

Image = pytest.importorskip('PIL.Image', reason='needs Pillow')


def picture(kind: str = 'JPEG', size=(40, 30)) -> bytes:
    file = BytesIO()
    Image.effect_noise(size, 80).convert('RGB').save(file, kind)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large, in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        size, check = len(body), zlib.crc32(checked)
        return struct.pack('>I', size) + checked + struct.pack('>I', check)

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000))
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', rows)
        + chunk(b'IEND', b'')
    )


def get(urls, folder, **kwargs):
    return fetch_images(urls, folder, **{'wait': 0.001, 'retries': 2, **kwargs})


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'WEBP'])
def test_formats(server, tmp_path, kind):
    body = picture(kind)
    # What the address and the header say does not count.
    url = server.add('/a.txt', body, kind='text/plain')
    result = get([url], tmp_path / 'images')
    ending = {'JPEG': 'jpg'}.get(kind, kind.lower())
    assert result.files[0].endswith(f'.{ending}')
    path = tmp_path / 'images' / result.files[0]
    assert path.read_bytes() == body
    assert read_image(path).mode == 'RGB'
    assert result.missing.tolist() == [False]


def test_what_a_killed_process_left_is_removed(server, tmp_path):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    stale, live = (
        f'.a.jpg.{HOST}.{pid}.0123abcd.tmp' for pid in (dead.pid, os.getppid())
    )
    for name in (stale, live):
        (tmp_path / name).touch()
    (file,) = get([server.add('/a.jpg', picture())], tmp_path).files
    assert names(tmp_path) == [live, file]


def test_pictures_of_cameras_with_several_frames(server, tmp_path):
    file = BytesIO()
    frames = [Image.new('RGB', (40, 30), color) for color in ('red', 'blue')]
    frames[0].save(file, 'MPO', save_all=True, append_images=frames[1:])
    result = get([server.add('/a.jpg', file.getvalue())], tmp_path)
    assert result.counts == {'new': 1}
    assert result.files[0].endswith('.jpg')
    assert read_image(tmp_path / result.files[0]).getpixel((5, 5))[0] > 200
    assert get([server.url + '/a.jpg'], tmp_path).counts == {'kept': 1}


@pytest.mark.parametrize(
    ('answer', 'reason'),
    [
        ({'status': 302, 'headers': {'Location': 'http://[::1'}}, 'address refused'),
        ({'first': [(429, {'Retry-After': '9' * 400})] * 9}, 'too busy'),
        ({'first': [(429, {'Retry-After': '9' * 5000})] * 9}, 'too busy'),
        ({'first': [(503, {'Retry-After': 'Mon, 99'})] * 9}, 'failed'),
        ({'headers': {'Content-Length': '9' * 400}, 'length': -1}, 'too large'),
        ({'headers': {'Content-Length': '9' * 5000}, 'length': -1}, 'too large'),
    ],
)
def test_odd_answers(server, tmp_path, answer, reason):
    odd = server.add('/odd.jpg', picture(), **answer)
    good = server.add('/good.jpg', picture())
    assert get([odd, good], tmp_path).counts == {'new': 1, reason: 1}


def test_an_unforeseen_failure_is_that_of_one_picture(server, tmp_path, monkeypatch):
    def decode(content, max_pixels):
        if content == b'odd':
            raise KeyError('surprise')
        return decode_image(content, max_pixels)

    monkeypatch.setattr('hellm_pyg.datasets.images.decode_image', decode)
    odd = server.add('/odd.jpg', b'odd')
    result = get([odd, server.add('/good.jpg', picture())], tmp_path)
    assert result.counts == {'failed': 1, 'new': 1}
    assert "KeyError('surprise')" in result.problems[odd]


def test_what_a_later_call_may_fetch(server, tmp_path):
    busy = server.add('/busy.jpg', picture(), first=[(503, {})] * 3)
    gone, text = server.url + '/gone.jpg', server.add('/text.jpg', b'hello')
    first = get([busy, gone, text], tmp_path)
    assert first.again
    assert first.refused == {gone: 'not found', text: 'not an image'}
    second = get([busy, gone, text], tmp_path, refused=first.refused)
    assert not second.again
    assert second.refused == first.refused
    assert second.counts == {'new': 1, 'not an image': 1, 'not found': 1}
    assert 'refused before' in second.problems[gone]
    assert len(server.asked('/gone.jpg')) == len(server.asked('/text.jpg')) == 1


def test_mask_follows_the_items(server, tmp_path):
    good = server.add('/a.jpg', picture())
    urls = [good, None, server.url + '/gone.jpg', '', good]
    result = get(urls, tmp_path)
    assert result.missing.tolist() == [False, True, True, True, False]
    assert result.files[0] == result.files[4]
    assert result.files[1:4] == ['', '', '']
    assert result.counts == {'new': 2, 'no address': 2, 'not found': 1}
    assert list(result.problems) == [urls[2]]
    assert len(server.asked('/a.jpg')) == 1
    assert len(server.asked('/gone.jpg')) == 1


def test_goes_on_where_it_was_stopped(server, tmp_path):
    urls = [server.add(f'/{i}.jpg', picture()) for i in range(6)]
    first = get(urls[:3], tmp_path)
    again = get(urls, tmp_path)
    assert again.files[:3] == first.files
    assert again.counts == {'kept': 3, 'new': 3}
    assert len(server.requests) == 6


def test_names_cannot_leave_the_folder(server, tmp_path):
    folder = tmp_path / 'in' / 'images'
    paths = ['/../../x.jpg', '/%2e%2e%2fx.jpg', '/a/../../../x.jpg', '/x.jpg?/../y']
    urls = [server.add(path, picture()) for path in paths]
    result = get(urls, folder)
    assert not result.missing.any()
    assert names(tmp_path) == ['in']
    assert names(tmp_path / 'in') == ['images']
    assert sorted(result.files) == names(folder)


@pytest.mark.parametrize(
    'url', ['file:///etc/passwd', 'ftp://x/y.jpg', 'data:image/png;base64,AA', 'a.jpg']
)
def test_only_http(tmp_path, url):
    result = get([url], tmp_path)
    assert result.counts == {'address refused': 1}
    assert result.missing.all()


@pytest.mark.parametrize('scheme', ['file://', 'ftp://', 'FILE:', 'data:image/png,'])
def test_redirects_go_to_http_only(server, tmp_path, scheme):
    secret = tmp_path / 'secret.png'
    secret.write_bytes(picture('PNG'))
    url = server.add('/a.png', status=302, headers={'Location': f'{scheme}{secret}'})
    result = get([url], tmp_path / 'images')
    assert result.counts == {'address refused': 1}
    assert names(tmp_path / 'images') == []


def test_redirect_to_an_image(server, tmp_path):
    server.add('/b.png', picture('PNG'))
    url = server.add('/a', status=301, headers={'Location': '/b.png'})
    assert get([url], tmp_path).counts == {'new': 1}


def test_waits_as_long_as_the_server_asks(server, tmp_path):
    url = server.add('/a.jpg', picture(), first=[(429, {'Retry-After': '1'})])
    start = time.monotonic()
    assert get([url], tmp_path).counts == {'new': 1}
    assert time.monotonic() - start >= 1


def test_no_more_at_once_than_asked(server, tmp_path):
    urls = [server.add(f'/{i}.jpg', picture(), pause=0.02) for i in range(12)]
    assert get(urls, tmp_path, max_workers=3).counts == {'new': 12}
    assert 2 <= server.most_at_once <= 3


@pytest.mark.parametrize('url', ['http://[::1', 'http://x:port/', 'http://a\ud800/'])
def test_malformed_addresses(tmp_path, url):
    assert get([url], tmp_path, retries=0).missing.all()


def test_what_is_no_image(server, tmp_path):
    body = picture('PNG')
    jpeg = picture('JPEG')
    tiff = picture('TIFF')
    expected = {
        server.add('/page.jpg', b'<html>', kind='text/html'): 'not an image',
        server.add('/text.jpg', b'hello'): 'not an image',
        server.add('/lie.jpg', b'<!doctype html>', kind='image/jpeg'): 'not an image',
        server.add('/empty.jpg', b''): 'not an image',
        server.add('/tiff.jpg', tiff): 'not an image',
        server.add('/half.png', body[: len(body) // 2]): 'damaged',
        server.add('/half.jpg', jpeg[: len(jpeg) // 2]): 'damaged',
        server.add('/head.png', body[:20]): 'damaged',
        server.add('/bomb.png', bomb(60_000, 60_000)): 'too many pixels',
        server.add('/wide.png', bomb(10_000, 10_000)): 'too many pixels',
        server.add('/pixel.gif', picture('GIF', (1, 1))): 'tiny',
    }
    for url, reason in expected.items():
        result = get([url], tmp_path)
        assert result.counts == {reason: 1}, url
        assert list(result.problems) == [url]
    assert names(tmp_path) == []


def test_largest_size(server, tmp_path):
    body = picture('PNG', (100, 100))
    assert len(body) > 5000
    for length in (None, -1):
        url = server.add('/a.png', body, length=length)
        assert get([url], tmp_path, max_bytes=5000).counts == {'too large': 1}
    assert names(tmp_path) == []


def test_budget(server, tmp_path):
    body = picture('PNG')
    urls = [server.add(f'/{i}.png', body) for i in range(6)]
    limit = 3 * len(body)
    result = get(urls, tmp_path, max_workers=1, max_total=limit)
    assert result.counts == {'new': 3, 'over budget': 3}
    assert len(server.requests) == 3
    assert result.again
    assert get(urls, tmp_path, max_total=limit).counts == {'kept': 3, 'new': 3}


def test_passing_failures(server, tmp_path):
    body = picture()
    urls = [
        server.add('/busy.jpg', body, first=[(429, {'Retry-After': '0'}), (503, {})]),
        server.add('/cut.jpg', body, cut=100, cuts=1),
        server.add('/slow.jpg', body, piece=200, pause=0.01),
    ]
    assert get(urls, tmp_path).counts == {'new': 3}


def test_lasting_failures(server, tmp_path):
    body = picture('PNG', (100, 100))
    urls = [
        server.add('/busy.jpg', body, first=[(503, {})] * 9),
        server.add('/cut.jpg', body, cut=100),
        server.add('/long.jpg', body, length=len(body) + 9),
        server.add('/slow.jpg', body, piece=10, pause=0.02),
        server.add('/loop.jpg', status=302, headers={'Location': '/loop.jpg'}),
        server.add('/later.jpg', body, first=[(429, {'Retry-After': '9999'})]),
    ]
    result = get(urls, tmp_path, timeout=0.2, min_speed=10_000)
    assert result.counts == {
        'cut off': 2,
        'failed': 1,
        'redirect loop': 1,
        'too busy': 1,
        'too slow': 1,
    }
    assert names(tmp_path) == []


def test_dead_host_is_given_up(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        host = f'http://127.0.0.1:{free.getsockname()[1]}'
    urls = [f'{host}/{i}.jpg' for i in range(100)]
    result = get(urls, tmp_path, max_workers=1, retries=0)
    left = 100 - HOST_FAILURES
    assert result.counts == {'failed': HOST_FAILURES, 'host given up': left}
    assert result.again
    assert result.refused == {}


def test_stops_at_once_when_the_disk_fails(server, tmp_path, monkeypatch):
    urls = [server.add(f'/{i}.jpg', picture(), pause=0.02) for i in range(50)]

    def full(path, sweep):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('hellm_pyg.datasets.images.atomic', full)
    with pytest.raises(OSError, match='No space'):
        get(urls, tmp_path, max_workers=2)
    assert len(server.requests) < 20


@pytest.mark.parametrize('name', ['max_workers', 'max_bytes', 'max_total'])
def test_limits(tmp_path, name):
    with pytest.raises(ValueError, match=f"'{name}' needs to be at least 1"):
        get([], tmp_path, **{name: 0})


def test_unreadable_file_is_named(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_bytes(picture()[:300])
    with pytest.raises(ImageError, match=r'a\.jpg'):
        read_image(path)


def test_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / 'a.png'
    with path.open('wb') as file:
        file.write(picture('PNG'))
        file.truncate(1 << 40)  # sparse: takes no room
    with pytest.raises(ImageError, match=r'a\.png.*more than') as caught:
        read_image(path)
    assert caught.value.reason == 'too large'


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(ImageError, match=r'gone\.png') as caught:
        read_image(tmp_path / 'gone.png')
    assert caught.value.reason == 'not found'
    with pytest.raises(ImageError, match='is no file') as caught:
        read_image(tmp_path)
    assert caught.value.reason == 'not found'


def test_turned_photos(tmp_path):
    path = tmp_path / 'a.jpg'
    image = Image.new('RGB', (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera lay on its side
    image.save(path, exif=exif)
    assert read_image(path).size == (20, 40)
    body = path.read_bytes()
    at = body.index(b'Exif')
    path.write_bytes(body[: at + 6] + b'nonsense' + body[at + 14 :])
    assert read_image(path).size == (40, 20)


def test_palette_and_grey_images():
    file = BytesIO()
    Image.new('L', (20, 20)).save(file, 'PNG')
    assert decode_image(file.getvalue()).mode == 'L'


def test_says_how_to_install_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'PIL.Image', None)
    with pytest.raises(ValueError, match=r"pip install 'hellm_pyg\[features\]'"):
        get([], tmp_path / 'images')
    assert names(tmp_path) == []
