"""Files from mirrors: resumed, checked, and whole under their name or not there."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from time import sleep

from tqdm import tqdm

from hellm_pyg.datasets.partial_file import PartialFile
from hellm_pyg.datasets.transfer import (
    CHUNK,
    TransferError,
    content_length,
    is_html,
    open_url,
    pause,
    read_chunks,
)

logger = logging.getLogger(__name__)


def fetch(
    urls: str | Sequence[str],
    path: str | os.PathLike[str],
    size: int | None = None,
    sha256: str | None = None,
    max_size: int | None = None,
    retries: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
    min_speed: float = 1024,
    progress: bool = True,
) -> Path:
    """Downloads a file, unless it is there.

    What has arrived lies beside :obj:`path` under a hidden name that ends in
    :obj:`.part`, from which a later call goes on if the server's file is still
    the same. The file takes its name once it is checked: by its size and hash if
    they are known; without a hash, a :obj:`.gz` has to decompress to its end.
    Of several processes that fetch one file, one does and the others wait
    (not on Windows).

    Args:
        urls: http(s) addresses of the same file, tried in this order.
        path: The file.
        size: Number of bytes.
        sha256: Hash in hexadecimal digits.
        max_size: Largest number of bytes that is taken.
        retries: Attempts of a mirror, after the first, that bring nothing.
        wait: Seconds before the second attempt; they double from there. A
            server's :obj:`Retry-After` of up to five minutes is heeded.
        timeout: Seconds without an answer or progress that end an attempt.
        min_speed: Bytes a second below which an attempt ends.
        progress: Whether to show a progress bar (in a terminal).

    Returns:
        The path of the file.

    Raises:
        ValueError: If no mirror gives the file, or the file that is there has
            another size or hash.
    """
    urls = [urls] if isinstance(urls, str) else list(urls)
    if not urls:
        raise ValueError("'urls' needs at least one address (got none)")
    path = Path(path).expanduser()
    wanted = _Wanted(path, size, sha256 and sha256.lower(), max_size)
    if path.exists():
        problem = wanted.problem(path)
        if problem:
            raise ValueError(
                f"'{path}' {problem}; delete it, and it is downloaded again"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    with PartialFile.locked(path) as part:
        if path.exists():  # another process was faster
            return path
        for url in urls:
            transfer = _Transfer(url, part, wanted, timeout, min_speed, progress)
            try:
                transfer.run(retries, wait)
            except TransferError as error:
                logger.warning('%s', error)
                problems.append(str(error))
                continue
            part.finish(path)
            return path
    raise ValueError(
        f"'{path}' cannot be downloaded: {'; '.join(problems)}. Try again later, or "
        f'put the file there by hand'
    )


@dataclass(frozen=True)
class _Wanted:
    path: Path
    size: int | None
    sha256: str | None
    max_size: int | None

    def problem(self, file: Path) -> str:
        """What is wrong with a whole file; empty if nothing is."""
        actual = file.stat().st_size
        if self.size is not None and actual != self.size:
            return f'has {actual} bytes, not {self.size}'
        if self.sha256 is not None:
            with file.open('rb') as content:
                found = hashlib.file_digest(content, 'sha256').hexdigest()
            return '' if found == self.sha256 else f'has the SHA-256 {found}'
        if self.path.suffix.lower() == '.gz':
            try:
                with gzip.open(file) as content:
                    while content.read(1 << 20):
                        pass
            except (OSError, EOFError, zlib.error) as error:
                return f'is no whole gzip file: {error}'
        return ''


class _Transfer:
    """One file from one mirror, in as many attempts as it takes."""

    def __init__(
        self,
        url: str,
        part: PartialFile,
        wanted: _Wanted,
        timeout: float,
        min_speed: float,
        progress: bool,
    ) -> None:
        self.url = url
        self.part = part
        self.wanted = wanted
        self.timeout = timeout
        self.min_speed = min_speed
        self.progress = progress

    def run(self, retries: int, wait: float) -> None:
        failures, best = 0, self.part.size
        while True:
            try:
                whole = self._attempt()
                self.part.file.flush()
                problem = self.wanted.problem(self.part.path)
                if not problem:
                    return
                self.part.begin({})
                # What came in one piece of known length was meant like this.
                raise TransferError(f"'{self.url}' {problem}", again=not whole)
            except TransferError as error:
                self.part.file.flush()
                if self.part.size >= best + CHUNK:
                    failures, best = 0, self.part.size
                failures += 1
                if not error.again or failures > retries:
                    raise
                seconds = pause(error, failures, wait)
                logger.info('%s; again in %.1f seconds', error, seconds)
                sleep(seconds)

    def _attempt(self) -> bool:
        """Whether the file came in one piece of known length."""
        have, source = self.part.size, self.part.source
        validator = source.get('validator')
        if have and source.get('total') == have and source.get('url') == self.url:
            return False
        headers = {}
        if have and source.get('url') == self.url and validator:
            headers = {'Range': f'bytes={have}-', 'If-Range': validator}
        with self._open(headers) as response:
            if is_html(response) and self.wanted.path.suffix.lower() != '.html':
                raise TransferError(
                    f"'{self.url}' gives a web page in place of the file",
                    'not the file',
                )
            if response.status != 206:
                have = 0
            elif not response.headers.get('Content-Range', '').startswith(
                f'bytes {have}-'
            ):
                self.part.begin({})
                raise TransferError(f"'{self.url}' goes on elsewhere", again=True)
            length = content_length(response)
            total = None if length is None else have + length
            self._check_total(total)
            if not have:
                self.part.begin(
                    {'url': self.url, 'validator': _validator(response), 'total': total}
                )
            self._write(response, have, total)
        return not headers and total is not None

    def _open(self, headers: dict[str, str]) -> HTTPResponse:
        try:
            return open_url(self.url, self.timeout, headers)
        except TransferError as error:
            if error.reason == 'range refused':
                self.part.begin({})
                error.again = True
            raise

    def _check_total(self, total: int | None) -> None:
        size, most = self.wanted.size, self.wanted.max_size
        if total is not None and size is not None and total != size:
            raise TransferError(f"'{self.url}' has {total} bytes, not {size}")
        if total is not None and most is not None and total > most:
            raise TransferError(f"'{self.url}' has more than {most} bytes", 'too large')

    def _write(self, response: HTTPResponse, have: int, total: int | None) -> None:
        most = self.wanted.max_size if self.wanted.size is None else self.wanted.size
        with tqdm(
            desc=self.wanted.path.name,
            initial=have,
            total=total,
            unit='B',
            unit_scale=True,
            disable=None if self.progress else True,
        ) as bar:
            chunks = read_chunks(response, self.url, self.timeout, self.min_speed)
            for chunk in chunks:
                have += len(chunk)
                if most is not None and have > most:
                    self.part.begin({})
                    raise TransferError(
                        f"'{self.url}' has more than {most} bytes", 'too large'
                    )
                self.part.file.write(chunk)
                bar.update(len(chunk))


def _validator(response: HTTPResponse) -> str | None:
    """What tells this version of the file from others: strong ETag or date."""
    tag = response.headers.get('ETag')
    if tag and not tag.startswith('W/'):
        return tag
    return response.headers.get('Last-Modified')
