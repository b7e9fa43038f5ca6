"""What is not the file that was asked for."""

import gzip
import hashlib

import pytest

from .test_download import BODY, get, names


def test_length_that_is_too_large(server, tmp_path):
    url = server.add('/a.bin', BODY, length=len(BODY) + 5, ranges=False)
    with pytest.raises(ValueError, match='5 bytes before the end'):
        get(url, tmp_path / 'a.bin')
    assert not (tmp_path / 'a.bin').exists()


def test_length_that_is_too_small(server, tmp_path):
    body = gzip.compress(BODY)
    url = server.add('/a.gz', body, length=len(body) - 5)
    with pytest.raises(ValueError, match='no whole gzip file'):
        get(url, tmp_path / 'a.gz')
    assert names(tmp_path) == []


@pytest.mark.parametrize('length', [None, -1])
def test_gz_that_the_server_has_cut(server, tmp_path, length):
    url = server.add('/a.gz', gzip.compress(BODY)[:-1000], length=length)
    with pytest.raises(ValueError, match=r"a\.gz' is no whole gzip file"):
        get(url, tmp_path / 'a.gz')
    assert names(tmp_path) == []
    good = server.add('/good.gz', gzip.compress(BODY), length=length)
    assert gzip.decompress(get([url, good], tmp_path / 'a.gz').read_bytes()) == BODY


def test_web_page_in_place_of_a_file(server, tmp_path):
    page = b'<html>Please log in</html>'
    url = server.add('/a.gz', page, kind='text/html; charset=utf-8')
    with pytest.raises(ValueError, match='a web page in place of the file'):
        get(url, tmp_path / 'a.gz')
    url = server.add('/b.gz', page)
    with pytest.raises(ValueError, match='no whole gzip file'):
        get(url, tmp_path / 'a.gz')
    assert names(tmp_path) == []


@pytest.mark.parametrize('length', [None, -1])
def test_size(server, tmp_path, length):
    url = server.add('/a.bin', BODY, length=length)
    wrong = server.add('/wrong.bin', BODY[:-1], length=length)
    large = server.add('/large.bin', BODY * 2, length=length)
    path = get([wrong, large, url], tmp_path / 'a.bin', size=len(BODY))
    assert path.read_bytes() == BODY
    with pytest.raises(ValueError, match=r"a\.bin' has 300000 bytes, not 7; delete"):
        get(url, path, size=7)


@pytest.mark.parametrize('length', ['9' * 400, '9' * 5000])
def test_length_of_hundreds_of_digits(server, tmp_path, length):
    wrong = server.add('/w.bin', BODY, length=-1, headers={'Content-Length': length})
    url = server.add('/a.bin', BODY)
    path = get([wrong, url], tmp_path / 'a.bin', size=len(BODY))
    assert path.read_bytes() == BODY
    assert len(server.asked('/w.bin')) == 1


def test_redirect_to_no_address_leaves_the_other_mirrors(server, tmp_path):
    wrong = server.add('/w', status=302, headers={'Location': 'http://[::1'})
    path = get([wrong, server.add('/a.bin', BODY)], tmp_path / 'a.bin')
    assert path.read_bytes() == BODY


def test_hash(server, tmp_path):
    wrong, url = server.add('/wrong.bin', BODY[::-1]), server.add('/a.bin', BODY)
    sha256 = hashlib.sha256(BODY).hexdigest().upper()
    path = get([wrong, url], tmp_path / 'a.bin', sha256=sha256)
    assert path.read_bytes() == BODY
    with pytest.raises(ValueError, match=r"b\.bin' cannot be.* has the SHA-256"):
        get(wrong, tmp_path / 'b.bin', sha256=sha256)
    assert names(tmp_path) == ['a.bin']


@pytest.mark.parametrize('length', [None, -1])
def test_largest_size(server, tmp_path, length):
    url = server.add('/a.bin', BODY, length=length)
    with pytest.raises(ValueError, match='more than 1000 bytes'):
        get(url, tmp_path / 'a.bin', max_size=1000)
    assert names(tmp_path) == []
