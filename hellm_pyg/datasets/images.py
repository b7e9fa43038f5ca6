"""Images of items, fetched side by side into one folder."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from urllib.parse import urlsplit

import torch
from torch import Tensor
from tqdm import tqdm

from hellm_pyg.checkpoint import atomic, discard_abandoned
from hellm_pyg.datasets.image_file import (
    ENDINGS,
    MAX_PIXELS,
    ImageError,
    decode_image,
    require_pillow,
)
from hellm_pyg.datasets.transfer import (
    TransferError,
    content_length,
    is_html,
    open_url,
    pause,
    read_chunks,
)

logger = logging.getLogger(__name__)

# Addresses in a row that a host leaves unanswered before it is given up.
HOST_FAILURES = 20
MAX_SHOWN = 100
# Besides errors of which another attempt may succeed, what a later call may fetch.
PASSING = {'too busy', 'over budget', 'host given up', 'stopped'}


@dataclass(frozen=True)
class FetchedImages:
    r"""Which items have an image.

    Args:
        files: File name of each item within the folder, ``''`` if missing.
        missing: bool of shape :math:`[I]`, true where an item has no image.
        counts: How many images were new, kept from before, or missing and why.
        problems: Address and what went wrong, of the first hundred.
        refused: Address and why it holds no image, where a later call would find
            the same.
        again: Whether a later call may fetch more.
    """

    files: list[str]
    missing: Tensor
    counts: dict[str, int]
    problems: dict[str, str]
    refused: dict[str, str]
    again: bool


@dataclass(frozen=True)
class _Outcome:
    file: str
    reason: str
    problem: str = ''
    passing: bool = False


def fetch_images(
    urls: Sequence[str | None],
    folder: str | os.PathLike[str],
    max_workers: int = 8,
    max_bytes: int = 10 << 20,
    max_total: int = 20 << 30,
    max_pixels: int = MAX_PIXELS,
    retries: int = 3,
    wait: float = 1.0,
    timeout: float = 20.0,
    min_speed: float = 4096,
    progress: bool = True,
    refused: Mapping[str, str] | None = None,
) -> FetchedImages:
    """Fetches JPEG, PNG, GIF and WebP images from http(s) addresses.

    A file is named by the hash of its address and its true format, never by
    anything the address says, and written once it has been decoded whole.
    Images that lie in the folder are kept, so a second call goes on where the
    first was stopped.

    Args:
        urls: Address of each item's image; empty or :obj:`None` if it has none.
        folder: The folder.
        max_workers: Images under way at once.
        max_bytes: Largest size of one image.
        max_total: Bytes that this call receives in all; what is left is missing.
        max_pixels: Larger images are refused before they are decompressed.
        retries: Attempts after the first, where another may succeed.
        wait: Seconds before the second attempt; they double from there. A
            server's :obj:`Retry-After` of up to five minutes is heeded.
        timeout: Seconds without an answer or progress that end an attempt.
        min_speed: Bytes a second below which an attempt ends.
        progress: Whether to show a progress bar (in a terminal).
        refused: Addresses that are not asked for, as of an earlier result.

    Raises:
        ValueError: If Pillow is not installed or a limit is out of range.
    """
    for name, value in {
        'max_workers': max_workers,
        'max_bytes': max_bytes,
        'max_total': max_total,
        'max_pixels': max_pixels,
    }.items():
        if value < 1:
            raise ValueError(f"'{name}' needs to be at least 1 (got {value})")
    require_pillow()
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    discard_abandoned(folder)
    session = _Session(
        folder,
        max_bytes,
        max_total,
        max_pixels,
        retries,
        wait,
        timeout,
        min_speed,
        refused or {},
    )
    distinct = list(dict.fromkeys(url for url in urls if url))
    outcome = _outcomes(session, distinct, max_workers, progress)
    files = [outcome[url].file if url else '' for url in urls]
    counts = Counter(outcome[url].reason if url else 'no address' for url in urls)
    missing = torch.tensor([not file for file in files], dtype=torch.bool)
    _warn_of_missing(folder, missing, counts)
    failed = {url: o for url, o in outcome.items() if o.problem}
    return FetchedImages(
        files,
        missing,
        dict(sorted(counts.items())),
        {url: o.problem for url, o in list(failed.items())[:MAX_SHOWN]},
        {url: o.reason for url, o in failed.items() if not o.passing},
        any(o.passing for o in failed.values()),
    )


@dataclass
class _Session:
    """Limits, and what the threads know together."""

    folder: Path
    max_bytes: int
    max_total: int
    max_pixels: int
    retries: int
    wait: float
    timeout: float
    min_speed: float
    refused: Mapping[str, str]

    def __post_init__(self) -> None:
        self.kept = {
            path.stem: path.name
            for path in self.folder.iterdir()
            if path.suffix in ENDINGS.values() and not path.name.startswith('.')
        }
        self.stopped = Event()
        self.lock = Lock()
        self.received = 0
        self.unanswered: Counter[str] = Counter()

    def result(self, url: str) -> _Outcome:
        """Fetches, checks and writes one image."""
        stem = hashlib.sha256(url.encode('utf-8', 'replace')).hexdigest()[:32]
        if stem in self.kept:
            return _Outcome(self.kept[stem], 'kept')
        if url in self.refused:
            reason = self.refused[url]
            return _Outcome('', reason, f"'{url}' was refused before: {reason}")
        try:
            content = self._content(url)
            image = decode_image(content, self.max_pixels)
            name = stem + ENDINGS[str(image.format)]
        except TransferError as error:
            passing = error.again or error.reason in PASSING
            return _Outcome('', error.reason, str(error), passing)
        except ImageError as error:
            return _Outcome('', error.reason, str(error))
        except Exception as error:  # of one odd answer, which must not end the rest
            logger.debug('%s', url, exc_info=True)
            return _Outcome('', 'failed', f"'{url}' cannot be used: {error!r}")
        with atomic(self.folder / name, sweep=False) as temporary:
            temporary.write_bytes(content)
        return _Outcome(name, 'new')

    def _content(self, url: str) -> bytes:
        failures = 0
        host = _host(url)
        while True:
            if self.stopped.is_set():
                raise TransferError('stopped', 'stopped')
            if self.unanswered[host] >= HOST_FAILURES:
                raise TransferError(
                    f"'{host}' is given up after {HOST_FAILURES} failures in a row",
                    'host given up',
                )
            try:
                content = self._attempt(url)
            except TransferError as error:
                failures += 1
                if error.again and failures <= self.retries:
                    self.stopped.wait(pause(error, failures, self.wait))
                    continue
                with self.lock:
                    answered = not error.again
                    self.unanswered[host] = 0 if answered else self.unanswered[host] + 1
                raise
            with self.lock:
                self.unanswered[host] = 0
            return content

    def _attempt(self, url: str) -> bytes:
        if self.received >= self.max_total:
            raise TransferError(
                f"'max_total' of {self.max_total} bytes is used up", 'over budget'
            )
        content = bytearray()
        with open_url(url, self.timeout) as response:
            if is_html(response):
                raise TransferError(f"'{url}' gives a web page", 'not an image')
            self._check_size(url, content_length(response) or 0)
            for chunk in read_chunks(response, url, self.timeout, self.min_speed):
                content += chunk
                self._check_size(url, len(content))
                with self.lock:
                    self.received += len(chunk)
                    if self.received > self.max_total:
                        raise TransferError(
                            f"'max_total' of {self.max_total} bytes is used up",
                            'over budget',
                        )
        return bytes(content)

    def _check_size(self, url: str, size: int) -> None:
        if size > self.max_bytes:
            raise TransferError(
                f"'{url}' has more than {self.max_bytes} bytes", 'too large'
            )


def _outcomes(
    session: _Session, urls: list[str], max_workers: int, progress: bool
) -> dict[str, _Outcome]:
    with ThreadPoolExecutor(max_workers) as pool:
        try:
            results = pool.map(session.result, urls)
            bar = tqdm(
                results,
                'Fetching images',
                len(urls),
                disable=None if progress else True,
            )
            return dict(zip(urls, bar, strict=True))
        except BaseException:
            session.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _warn_of_missing(folder: Path, missing: Tensor, counts: Mapping[str, int]) -> None:
    if missing.any():
        logger.warning(
            '%s: %d of %d items have no image: %s',
            folder,
            int(missing.sum()),
            len(missing),
            ', '.join(f'{n} {reason}' for reason, n in sorted(counts.items())),
        )


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ''
