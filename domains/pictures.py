"""Sheets of pictures."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from runtime.files import atomic_write

GAP, HEADING = 2, 20  # pixels between pictures, and for text above them


def save_grid(
    raw: Tensor,
    path: str | Path,
    columns: int | None = None,
    headings: Mapping[int, str] | None = None,
) -> None:
    """uint8 (B, C, H, W) -> a PNG sheet, row by row.

    Args:
        headings: text above the sheet, by the column where it begins.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = columns or math.ceil(math.sqrt(len(raw)))
    image = Image.fromarray(sheet(raw, columns))
    if headings:
        under, image = image, Image.new("RGB", (image.width, image.height + HEADING), "white")
        image.paste(under, (0, HEADING))
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(HEADING - 6)
        for column, text in headings.items():
            left = column * (under.width - GAP) // columns + GAP
            draw.text((left, 1), text, fill="black", font=font)
    with atomic_write(path) as file:
        image.save(file, format="PNG")


def sheet(raw: Tensor, columns: int) -> np.ndarray:
    """uint8 (B, C, H, W) -> one picture (height, width, 3); tiny images are enlarged, unblurred."""
    count, _, height, width = raw.shape
    rows = math.ceil(count / columns)
    times, gap = max(1, 64 // max(height, width)), GAP
    tile_height, tile_width = height * times + gap, width * times + gap
    found = np.full((rows * tile_height + gap, columns * tile_width + gap, 3), 255, np.uint8)
    tiles = raw.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    for number, tile in enumerate(tiles.repeat(times, axis=1).repeat(times, axis=2)):
        top = gap + number // columns * tile_height
        left = gap + number % columns * tile_width
        found[top : top + height * times, left : left + width * times] = tile
    return found
