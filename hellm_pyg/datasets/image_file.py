"""Image files from strangers, decoded with limits."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# Format to ending; Pillow opens no other. A JPEG with further pictures behind the
# first, as many cameras write it, becomes an MPO.
FORMATS = {'JPEG': '.jpg', 'PNG': '.png', 'GIF': '.gif', 'WEBP': '.webp'}
ENDINGS = {**FORMATS, 'MPO': '.jpg'}
MAX_PIXELS = 20_000_000
MAX_BYTES = 64 << 20
# Shops answer with a single pixel where they have no picture.
MIN_SIDE = 8


class ImageError(ValueError):
    """An image that is not used; ``reason`` says why in a word or two."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def require_pillow() -> None:
    """Refuses to go on without Pillow.

    Raises:
        ValueError: Says how to install it.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ValueError(
            "images need Pillow: pip install 'hellm_pyg[features]'"
        ) from None


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes all of a JPEG, PNG, GIF (first frame) or WebP image.

    Args:
        content: The file's content.
        max_pixels: Larger images are refused before they are decompressed.

    Raises:
        ImageError: If it is no such image, truncated, or too large or small.
        MemoryError: If there is no memory for it now.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(BytesIO(content), formats=list(FORMATS))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(str(error), 'too many pixels') from None
    except UnidentifiedImageError:
        kinds = ', '.join(FORMATS)
        raise ImageError(f'neither of {kinds}', 'not an image') from None
    except Exception as error:  # decoders of broken headers fail in many ways
        raise _damaged(error) from None
    if image.width * image.height > max_pixels:
        raise ImageError(
            f'{image.width} x {image.height} is more than {max_pixels} pixels',
            'too many pixels',
        )
    if min(image.size) < MIN_SIDE:
        raise ImageError(f'{image.width} x {image.height} is a placeholder', 'tiny')
    try:
        image.load()
    except Exception as error:  # as above
        raise _damaged(error) from None
    return image


def read_image(
    path: Path, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> Image.Image:
    """An image file as RGB, turned as its camera was held.

    Args:
        path: The file.
        max_pixels: As of :func:`decode_image`.
        max_bytes: Larger files are refused before they are read.

    Raises:
        ImageError: If it cannot be used; see :func:`decode_image`.
        OSError: If the system cannot read it now.
        MemoryError: If there is no memory for it now.
    """
    from PIL import ImageOps

    if not path.is_file():
        raise ImageError(f"'{path}' is no file", 'not found')
    size = path.stat().st_size
    if size > max_bytes:
        raise ImageError(
            f"'{path}' has {size} bytes, more than {max_bytes}", 'too large'
        )
    try:
        image = decode_image(path.read_bytes(), max_pixels)
        return ImageOps.exif_transpose(image).convert('RGB')
    except ImageError as error:
        raise ImageError(f"'{path}': {error}", error.reason) from None
    except Exception as error:  # of a broken EXIF block
        raise _damaged(error, f"'{path}': ") from None


def _damaged(error: Exception, where: str = '') -> Exception:
    """What a failure says of the image; one of the system, which may pass, itself."""
    passing = isinstance(error, OSError) and error.errno is not None
    if passing or isinstance(error, MemoryError):
        return error
    return ImageError(f'{where}{error!r}', 'damaged')
