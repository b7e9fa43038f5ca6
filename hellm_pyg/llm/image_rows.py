"""Image files to rows of a matrix: read safely, encoded once, kept."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from hellm_pyg.datasets.image_file import ImageError, read_image, require_pillow
from hellm_pyg.datasets.tables import printable
from hellm_pyg.llm.feature_cache import Advance, cached_rows
from hellm_pyg.llm.image_encoder import ImageEncoder

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

# Decoded images are large: few at a time.
MAX_WORKERS = 4
# Encoders enlarge the short side, and the long one with it.
MAX_RATIO = 20
MAX_SHOWN = 100


def encode_images(
    paths: Sequence[Path | None],
    encoder: ImageEncoder,
    cache: Path,
    progress: bool = True,
) -> tuple[Tensor, dict[str, Any]]:
    r"""Encodes one image file an item; equal files are encoded once.

    Args:
        paths: File of each item, :obj:`None` if it has none.
        encoder: The encoder.
        cache: Folder of the cache.
        progress: Whether to show progress bars (in a terminal).

    Returns:
        float32 of shape :math:`[I, F]`, NaN where there is no usable image, and
        the card: the settings, how many rows are missing and why.

    Raises:
        ValueError: If no image can be read, or Pillow is not installed.
    """
    require_pillow()
    digests, problems = _digests(paths, progress)
    file = {digest: path for path, digest in digests.items()}
    distinct = sorted(file)
    if not distinct:
        raise _nothing_read(problems)
    x, key = cached_rows(
        cache,
        encoder.settings,
        distinct,
        lambda rows, advance: _encode(
            encoder, [file[distinct[row]] for row in rows], advance
        ),
        'Encoding images',
        progress,
    )
    unread = {distinct[row] for row in x.isnan().any(dim=1).nonzero().view(-1).tolist()}
    problems |= {p: _problem(p) for p, digest in digests.items() if digest in unread}
    if len(unread) == len(distinct):
        raise _nothing_read(problems)
    position = {digest: row for row, digest in enumerate(distinct)}
    rows = [position.get(digests.get(path, ''), -1) if path else -1 for path in paths]
    index = torch.tensor(rows)
    out = x[index]
    out[index < 0] = torch.nan
    card = encoder.settings | {
        'key': key,
        'dim': x.size(1),
        'items': len(paths),
        'distinct': len(distinct),
        **_missing(paths, problems),
    }
    return out, card


def _digests(
    paths: Sequence[Path | None], progress: bool
) -> tuple[dict[Path, str], dict[Path, ImageError]]:
    """Hash of each file that there is, and what is wrong with the others."""
    digests: dict[Path, str] = {}
    problems: dict[Path, ImageError] = {}
    distinct = list(dict.fromkeys(path for path in paths if path is not None))
    hide = None if progress else True
    with ThreadPoolExecutor(MAX_WORKERS) as pool:
        results = pool.map(_digest, distinct)
        bar = tqdm(results, 'Reading images', len(distinct), disable=hide)
        for path, result in zip(distinct, bar, strict=True):
            if isinstance(result, ImageError):
                problems[path] = result
            else:
                digests[path] = result
    return digests, problems


def _digest(path: Path) -> str | ImageError:
    if not path.is_file():  # opening a pipe would wait
        return ImageError(f"'{path}' is no file", 'not found')
    try:
        with path.open('rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        return ImageError(f"'{path}': {error.strerror}", 'not readable')


def _read(path: Path) -> Image.Image:
    image = read_image(path)
    if max(image.size) > MAX_RATIO * min(image.size):
        size = f'{image.width} x {image.height}'
        raise ImageError(f"'{path}': {size} is too narrow", 'too narrow')
    return image


def _problem(path: Path) -> ImageError:
    try:
        _read(path)
    except ImageError as error:
        return error
    return ImageError(f"'{path}' could not be read before", 'not readable')


def _encode(encoder: ImageEncoder, paths: list[Path], advance: Advance) -> Tensor:
    """Rows of some files; the next images are read while a batch is encoded."""

    def read(path: Path) -> Tensor | None:
        try:
            return encoder.pixels(_read(path))
        except ImageError:
            return None

    size = encoder.batch_size
    batches = [paths[i : i + size] for i in range(0, len(paths), size)]
    rows: list[Tensor] = []
    with ThreadPoolExecutor(MAX_WORKERS) as pool:
        reading = pool.map(read, batches[0])
        for following in [*batches[1:], []]:
            pixels = list(reading)
            reading = pool.map(read, following)
            rows.append(_rows(encoder, pixels))
            advance(len(pixels))
    return torch.cat(rows)


def _rows(encoder: ImageEncoder, pixels: list[Tensor | None]) -> Tensor:
    x = torch.full((len(pixels), encoder.dim), torch.nan)
    present = [image for image in pixels if image is not None]
    if present:
        x[[image is not None for image in pixels]] = encoder.encode(present)
    return x


def _missing(
    paths: Sequence[Path | None], problems: dict[Path, ImageError]
) -> dict[str, Any]:
    """What the card says about items without an image; logged, too."""
    reasons = Counter(
        'no file name' if path is None else problems[path].reason
        for path in paths
        if path is None or path in problems
    )
    if reasons:
        logger.warning(
            '%d of %d items have no image features: %s',
            reasons.total(),
            len(paths),
            ', '.join(f'{n} {reason}' for reason, n in sorted(reasons.items())),
        )
    return {
        'missing': reasons.total(),
        'reasons': dict(sorted(reasons.items())),
        'problems': [printable(str(e)) for e in problems.values()][:MAX_SHOWN],
    }


def _nothing_read(problems: dict[Path, ImageError]) -> ValueError:
    first = next(iter(problems.values()), 'no item names a file')
    return ValueError(f"'images' has no image that can be read: {first}")
