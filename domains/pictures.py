"""Sheets of pictures."""

import math
from pathlib import Path

import numpy as np
from torch import Tensor

from runtime.files import atomic_write


def save_grid(raw: Tensor, path: str | Path, columns: int | None = None) -> None:
    """uint8 (B, C, H, W) -> a PNG sheet, row by row."""
    from PIL import Image

    with atomic_write(path) as file:
        Image.fromarray(sheet(raw, columns)).save(file, format="PNG")


def sheet(raw: Tensor, columns: int | None = None) -> np.ndarray:
    """uint8 (B, C, H, W) -> one picture (height, width, 3); tiny images are enlarged, unblurred."""
    count, _, height, width = raw.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    times, gap = max(1, 64 // max(height, width)), 2
    tile_height, tile_width = height * times + gap, width * times + gap
    found = np.full((rows * tile_height + gap, columns * tile_width + gap, 3), 255, np.uint8)
    tiles = raw.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    for number, tile in enumerate(tiles.repeat(times, axis=1).repeat(times, axis=2)):
        top = gap + number // columns * tile_height
        left = gap + number % columns * tile_width
        found[top : top + height * times, left : left + width * times] = tile
    return found
