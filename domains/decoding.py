"""Image files -> uint8 RGB arrays of one size, and what to say of files that are damaged."""

import math
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.files import open_patiently

# The others are not tried: PIL hands EPS files, whatever they are called, to Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 1 << 27  # as an image is stored: 400 MB of RGB
MAX_RESIZED = 1 << 26  # pixels; a strip one pixel wide would be enlarged to gigabytes


MAX_FAILURES = 1000  # unreadable samples in a row before --skip-corrupt gives up


class Unreadable(Exception):
    """One image, video, ... cannot be decoded; the message names it and says why."""


class Found(NamedTuple):
    index: int
    sample: Any
    problems: list[str]  # a sentence for each that was passed over


def readable(
    read: Callable[[int], Any], wanted: int, count: int, kind: str, *, skip_corrupt: bool
) -> Found:
    """Sample `wanted` of `count`, or with --skip-corrupt the next one that can be read.

    Args:
        kind: what a person calls them, in the plural.

    Raises:
        Unreadable: it cannot be read, or none can; the message is the whole sentence.
    """
    problems: list[str] = []
    for offset in range(min(count, MAX_FAILURES)):
        index = (wanted + offset) % count
        try:
            return Found(index, read(index), problems)
        except Unreadable as error:
            if not skip_corrupt:
                raise Unreadable(f"{error}; --skip-corrupt goes on without such {kind}") from error
            problems.append(str(error))
    raise Unreadable(f"{len(problems)} {kind} in a row cannot be read, the first: {problems[0]}")


@contextmanager
def opened(file, place: str) -> Iterator:
    """An image file as PIL's image, loaded, in its own mode; within, what is wrong has a name.

    Raises:
        Unreadable: truncated, no image, a decompression bomb, or gone.
    """
    from PIL import Image, UnidentifiedImageError

    damaged = (
        OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error, zlib.error,
        EOFError, ArithmeticError, RuntimeError, AttributeError, AssertionError, MemoryError,
        Image.DecompressionBombError,
    )  # fmt: skip  # what PIL's readers raise on damaged files
    try:
        if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
            raise Unreadable(f"{place} is no file of data")  # a pipe would be waited for
        with stream_of(file) as stream, Image.open(stream, formats=FORMATS) as image:
            if math.prod(image.size) > MOST_PIXELS:
                raise Unreadable(f"{place} claims {image.width} x {image.height} pixels")
            image.load()
            yield image
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise Unreadable(f"{place} cannot be read as an image (it is none of {known})") from error
    except damaged as error:
        raise Unreadable(f"{place} cannot be read as an image ({error})") from error


def stream_of(file) -> AbstractContextManager:
    """A path opened, what is open already as it is."""
    return open_patiently(file) if isinstance(file, str | Path) else nullcontext(file)


def decode(file, place: str, size: int) -> np.ndarray:
    """An image file as uint8 RGB (3, size, size): upright, center-cropped as ADM does.

    Raises:
        Unreadable: truncated, no image, a decompression bomb, a thin strip, or gone.
    """
    from PIL import ImageOps

    with opened(file, place) as image:
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # which a copy has not
        return np.asarray(center_crop(to_rgb(upright), size)).transpose(2, 0, 1).copy()


def to_rgb(image):
    """8-bit RGB; 16-bit grey is scaled, because PIL's own conversion clips it to white."""
    from PIL import Image

    # What a PGM has of more than 8 bits, PIL scales to 16 as it reads.
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
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
