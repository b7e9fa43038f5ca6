from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from tests.datasets.amazon_files import file_names, raw_files
from tests.datasets.local_server import serve
from tests.preparation.test_amazon import ITEMS, REVIEWS

from .running import error, hellm


def test_download_and_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.chdir(tmp_path)
    contents = raw_files('2018', reviews=REVIEWS, items=ITEMS)
    with serve() as server:
        names = file_names('2018', 'Toys_and_Games')
        for name, content in zip(names, contents, strict=True):
            server.add(f'/mirror/{name}', gzip.compress(content, mtime=0))
        output = hellm(
            'prepare', 'amazon', '--name', 'Toys', '--release', 2018, '--text', '',
            '--base-url', f'{server.url}/gone', '--base-url', f'{server.url}/mirror',
            '--min-count', 2, '--root', 'raw', '--out', 'toys',
        ).stdout  # fmt: skip
    assert re.search(r'name +│ Toys_and_Games ', output)
    assert re.search(r'interactions +│ 64 ', output)
    assert 'hellm pretrain sasrec dataset=toys --out runs/toys/seq' in output
    assert (tmp_path / 'toys' / 'data_card.json').is_file()


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.chdir(tmp_path)
    with serve() as server:
        message = error('prepare', 'amazon', '--base-url', server.url)
    assert 'reviews_Beauty_5.json.gz' in message
    assert not (tmp_path / 'data' / 'Beauty-2014').exists()
    message = error('prepare', 'amazon', '--sha256', 'abc')
    assert "'--sha256' needs FILE=HASH" in message
    message = error('prepare', 'amazon', '--sha256', 'x.gz=abc')
    assert "'--sha256' needs to name reviews_Beauty_5.json.gz or" in message
    message = error('prepare', 'amazon', '--image-encoder', 'clip')
    assert "'--image-encoder' needs '--images'" in message
