"""Images of items, fetched side by side into one folder."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from urllib.parse import urlsplit

import torch
from torch import Tensor
from tqdm import tqdm

from hellm_pyg.checkpoint import atomic
from hellm_pyg.datasets.image_file import (
    FORMATS,
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


@dataclass(frozen=True)
class FetchedImages:
    r"""Which items have an image.

    Args:
        files: File name of each item within the folder, ``''`` if missing.
        missing: bool of shape :math:`[I]`, true where an item has no image.
        counts: How many images were new, kept from before, or missing and why.
        problems: Address and what went wrong, of the first hundred.
    """

    files: list[str]
    missing: Tensor
    counts: dict[str, int]
    problems: dict[str, str]


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
    session = _Session(
        folder, max_bytes, max_total, max_pixels, retries, wait, timeout, min_speed
    )
    distinct = list(dict.fromkeys(url for url in urls if url))
    with ThreadPoolExecutor(max_workers) as pool:
        try:
            results = pool.map(session.result, distinct)
            bar = tqdm(
                results,
                'Fetching images',
                len(distinct),
                disable=None if progress else True,
            )
            outcome = dict(zip(distinct, bar, strict=True))
        except BaseException:
            session.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    files = [outcome[url][0] if url else '' for url in urls]
    counts = Counter(outcome[url][1] if url else 'no address' for url in urls)
    missing = torch.tensor([not file for file in files], dtype=torch.bool)
    if missing.any():
        logger.warning(
            '%s: %d of %d items have no image: %s',
            folder,
            int(missing.sum()),
            len(files),
            ', '.join(f'{n} {reason}' for reason, n in sorted(counts.items())),
        )
    problems = {url: o[2] for url, o in outcome.items() if o[2]}
    shown = dict(list(problems.items())[:MAX_SHOWN])
    return FetchedImages(files, missing, dict(sorted(counts.items())), shown)


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

    def __post_init__(self) -> None:
        self.kept = {
            path.stem: path.name
            for path in self.folder.iterdir()
            if path.suffix in FORMATS.values() and not path.name.startswith('.')
        }
        self.stopped = Event()
        self.lock = Lock()
        self.received = 0
        self.unanswered: Counter[str] = Counter()

    def result(self, url: str) -> tuple[str, str, str]:
        """File name, kind of outcome, and what went wrong."""
        stem = hashlib.sha256(url.encode('utf-8', 'replace')).hexdigest()[:32]
        if stem in self.kept:
            return self.kept[stem], 'kept', ''
        try:
            content = self._content(url)
            image = decode_image(content, self.max_pixels)
        except (TransferError, ImageError) as error:
            return '', error.reason, str(error)
        name = stem + FORMATS[str(image.format)]
        with atomic(self.folder / name) as temporary:
            temporary.write_bytes(content)
        return name, 'new', ''

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


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ''
