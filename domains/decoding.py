"""Image files -> uint8 RGB arrays of one size, and what to say of files that are damaged."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# The others are not tried: PIL hands EPS files, whatever they are called, to Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_RESIZED = 1 << 26  # pixels; a strip one pixel wide would be enlarged to gigabytes


class Unreadable(Exception):
    """One image cannot be decoded; the message names it and says why."""


@contextmanager
def opened(file, place: str) -> Iterator:
    """An image file as PIL's image, loaded, in its own mode; within, what is wrong has a name.

    Raises:
        Unreadable: truncated, no image, a decompression bomb, or gone.
    """
    from PIL import Image, UnidentifiedImageError

    damaged = (
        OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, struct.error, zlib.error,
        EOFError, OverflowError, Image.DecompressionBombError,
    )  # fmt: skip  # what PIL's readers raise on damaged files
    try:
        with Image.open(file, formats=FORMATS) as image:
            image.load()
            yield image
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise Unreadable(f"{place} cannot be read as an image (it is none of {known})") from error
    except damaged as error:
        raise Unreadable(f"{place} cannot be read as an image ({error})") from error


def decode(file, place: str, size: int) -> np.ndarray:
    """An image file as uint8 RGB (3, size, size): upright, center-cropped as ADM does.

    Raises:
        Unreadable: truncated, no image, a decompression bomb, a thin strip, or gone.
    """
    from PIL import ImageOps

    with opened(file, place) as image:
        upright = ImageOps.exif_transpose(image)
        return np.asarray(center_crop(to_rgb(upright), size)).transpose(2, 0, 1).copy()


def to_rgb(image):
    """8-bit RGB; 16-bit grey is scaled, because PIL's own conversion clips it to white."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no fixed range")
    return image.convert("RGB")


def center_crop(image, size: int | tuple[int, int]):
    """ADM's preprocessing: halve by box filter while twice too large, then bicubic, then crop.

    Args:
        size: of a square, or height and width.

    Raises:
        ValueError: so long and thin that it would not fit into memory.
    """
    from PIL import Image

    height, width = (size, size) if isinstance(size, int) else size
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    whole = round(image.width * scale), round(image.height * scale)
    if whole[0] * whole[1] > MAX_RESIZED:
        raise ValueError(f"{image.width} x {image.height} pixels are too thin to crop")
    image = image.resize(whole, Image.Resampling.BICUBIC)
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
