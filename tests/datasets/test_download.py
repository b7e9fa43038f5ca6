import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from hellm_pyg.datasets.download import fetch

BODY = os.urandom(300_000)


@pytest.fixture
def slept(monkeypatch):
    seconds = []
    monkeypatch.setattr('hellm_pyg.datasets.download.sleep', seconds.append)
    return seconds


def get(urls, path, **kwargs):
    return fetch(urls, path, **{'wait': 0.001, 'retries': 2, **kwargs})


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_downloads_once(server, tmp_path):
    url = server.add('/a.bin', BODY)
    path = get(url, tmp_path / 'raw' / 'a.bin')
    assert path.read_bytes() == BODY
    assert names(path.parent) == ['a.bin']
    get(url, path)
    assert len(server.requests) == 1


def test_resumes_where_it_was_cut(server, tmp_path):
    url = server.add('/a.bin', BODY, cut=100_000, cuts=1)
    assert get(url, tmp_path / 'a.bin').read_bytes() == BODY
    assert [h.get('Range') for h in server.asked('/a.bin')] == [None, 'bytes=100000-']
    assert names(tmp_path) == ['a.bin']


def test_many_cuts_that_each_bring_something(server, tmp_path):
    url = server.add('/a.bin', BODY, cut=70_000)
    assert get(url, tmp_path / 'a.bin', retries=1).read_bytes() == BODY
    assert len(server.requests) == 5


def test_resumes_in_a_later_call(server, tmp_path):
    path = tmp_path / 'a.bin'
    url = server.add('/a.bin', BODY, cut=100_000, cuts=1)
    with pytest.raises(ValueError, match=r'a\.bin.*200000 bytes before the end'):
        get(url, path, retries=0)
    assert not path.exists()
    assert get(url, path).read_bytes() == BODY
    assert server.requests[1][1]['Range'] == 'bytes=100000-'
    assert names(tmp_path) == ['a.bin']


def test_a_whole_part_is_not_asked_for_again(server, tmp_path, monkeypatch):
    path = tmp_path / 'a.bin'
    url = server.add('/a.bin', BODY)
    with monkeypatch.context() as patch:
        patch.setattr(
            'hellm_pyg.datasets.partial_file.os.replace',
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            get(url, path)
    assert get(url, path).read_bytes() == BODY
    assert len(server.requests) == 1


def test_does_not_mix_versions(server, tmp_path):
    path = tmp_path / 'a.bin'
    url = server.add('/a.bin', BODY, cut=100_000)
    with pytest.raises(ValueError, match='before the end'):
        get(url, path, retries=0)
    other = BODY[::-1]
    server.add('/a.bin', other)
    assert get(url, path).read_bytes() == other


@pytest.mark.parametrize('kwargs', [{'ranges': False}, {'tag': ''}])
def test_starts_again_where_resuming_is_not_offered(server, tmp_path, kwargs):
    url = server.add('/a.bin', BODY, cut=100_000, cuts=1, **kwargs)
    assert get(url, tmp_path / 'a.bin').read_bytes() == BODY
    assert len(server.requests) == 2


def test_refused_range_starts_again(server, tmp_path):
    path = tmp_path / 'a.bin'
    url = server.add('/a.bin', BODY, cut=100_000, cuts=1)
    with pytest.raises(ValueError, match='before the end'):
        get(url, path, retries=0)
    server.pages['/a.bin'].first = [(416, {})]
    assert get(url, path).read_bytes() == BODY


def test_mirrors_in_order(server, tmp_path):
    good = server.add('/good/a.bin', BODY)
    urls = [server.url + '/gone/a.bin', good, server.url + '/never/a.bin']
    assert get(urls, tmp_path / 'a.bin').read_bytes() == BODY
    assert [path for path, _ in server.requests] == ['/gone/a.bin', '/good/a.bin']


def test_not_found_is_not_tried_again(server, tmp_path, slept):
    with pytest.raises(ValueError, match=r"a\.bin' cannot be.* 404 .*by hand"):
        get(server.url + '/gone', tmp_path / 'a.bin')
    assert len(server.requests) == 1
    assert slept == []
    assert names(tmp_path) == []


def test_backs_off(server, tmp_path, slept):
    url = server.add('/a.bin', BODY, first=[(503, {})] * 4)
    get(url, tmp_path / 'a.bin', wait=1.0, retries=4)
    assert len(slept) == 4
    for attempt, seconds in enumerate(slept):
        assert 2**attempt <= seconds <= 1.5 * 2**attempt


def test_gives_up_in_the_end(server, tmp_path, slept):
    url = server.add('/a.bin', BODY, first=[(503, {})] * 9)
    with pytest.raises(ValueError, match='503'):
        get(url, tmp_path / 'a.bin', retries=3)
    assert len(server.requests) == 4


def test_heeds_retry_after(server, tmp_path, slept):
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    pages = [(429, {'Retry-After': '7'}), (429, {'Retry-After': moment})]
    url = server.add('/a.bin', BODY, first=pages)
    assert get(url, tmp_path / 'a.bin').read_bytes() == BODY
    assert slept[0] == 7
    assert 50 < slept[1] <= 60


def test_does_not_wait_for_hours(server, tmp_path, slept):
    url = server.add('/a.bin', BODY, first=[(429, {'Retry-After': '7200'})])
    with pytest.raises(ValueError, match=r'429.* wait 7200 seconds'):
        get(url, tmp_path / 'a.bin')
    assert slept == []


def test_follows_redirects(server, tmp_path):
    server.add('/a.bin', BODY)
    url = server.add('/old', status=302, headers={'Location': '/a.bin'})
    assert get(url, tmp_path / 'a.bin').read_bytes() == BODY


def test_redirect_loop(server, tmp_path):
    url = server.add('/x', status=302, headers={'Location': '/y'})
    server.add('/y', status=301, headers={'Location': '/x'})
    with pytest.raises(ValueError, match='redirects in a loop'):
        get(url, tmp_path / 'a.bin')
    assert len(server.requests) == 9


@pytest.mark.parametrize('scheme', ['file://', 'ftp://', 'data:,', 'FILE:', ''])
def test_only_http(server, tmp_path, scheme):
    secret = tmp_path / 'secret'
    secret.write_text('secret')
    with pytest.raises(ValueError, match='only http and https'):
        get(f'{scheme}{secret}', tmp_path / 'a.bin')
    if scheme:
        to = {'Location': f'{scheme}{secret}'}
        url = server.add('/trap', status=302, headers=to)
        with pytest.raises(ValueError, match='only http and https'):
            get(url, tmp_path / 'a.bin')
    assert names(tmp_path) == ['secret']


def test_trickle_is_given_up(server, tmp_path):
    url = server.add('/a.bin', BODY, piece=10, pause=0.02)
    start = time.monotonic()
    with pytest.raises(ValueError, match='less than 10000 bytes a second'):
        get(url, tmp_path / 'a.bin', timeout=0.1, min_speed=10_000, retries=1)
    assert time.monotonic() - start < 3


def test_silence_is_given_up(server, tmp_path):
    url = server.add('/a.bin', BODY, pause=1)
    with pytest.raises(ValueError, match='cut off: TimeoutError'):
        get(url, tmp_path / 'a.bin', timeout=0.1, retries=1)
    assert len(server.requests) == 2


@pytest.mark.parametrize('answer', [b'HTTP/1.1 200 OK', b'HTTP/1.1 200 OK\r\nX: '])
def test_header_that_never_ends_is_given_up(tmp_path, answer):
    with socket.create_server(('127.0.0.1', 0)) as listening:

        def trickle():
            connection = listening.accept()[0]
            with connection, suppress(OSError):
                connection.sendall(answer)
                for _ in range(500):  # a byte always comes in time
                    connection.sendall(b'a')
                    time.sleep(0.02)

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        url = f'http://127.0.0.1:{listening.getsockname()[1]}/a.bin'
        start = time.monotonic()
        with pytest.raises(ValueError, match='does not answer'):
            get(url, tmp_path / 'a.bin', timeout=0.2, retries=0)
        assert time.monotonic() - start < 5
        thread.join(5)
    assert names(tmp_path) == []


def test_nobody_answers(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{free.getsockname()[1]}/a.bin'
    with pytest.raises(ValueError, match='does not answer'):
        get(url, tmp_path / 'a.bin')


def test_two_at_once_download_once(server, tmp_path):
    pytest.importorskip('fcntl')
    url = server.add('/a.bin', BODY, pause=0.05)
    threads = [
        threading.Thread(target=get, args=(url, tmp_path / 'a.bin')) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / 'a.bin').read_bytes() == BODY
    assert len(server.requests) == 1
    assert names(tmp_path) == ['a.bin']


def test_no_address(tmp_path):
    with pytest.raises(ValueError, match="'urls' needs at least one"):
        fetch([], tmp_path / 'a.bin')
