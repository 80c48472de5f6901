"""COCO's three ways to say which pixels: polygons, and run lengths as a list or as text."""

from typing import Any

import numpy as np

BITS, MORE, NEGATIVE = 31, 32, 16  # of a character of the text: its value, and two signs
MAX_DIGITS = 10  # of one run; more would not fit into 64 bits


def pixels_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A `segmentation` of COCO's JSON as bool (height, width).

    Raises:
        ValueError, TypeError, KeyError, OverflowError: it is none, or one of another image.
    """
    if isinstance(segmentation, list):
        segmentation = outlined(segmentation, height, width)
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, its image's {[height, width]}")
    runs = runs_of(segmentation["counts"])
    # pycocotools' own decoder fills what short runs leave out with whatever lay in memory.
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"its runs are no {height} x {width} pixels")
    covered = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return covered.reshape(width, height).T  # runs go down the columns


def outlined(polygons: list, height: int, width: int) -> dict[str, Any]:
    """Run lengths of what polygons x0, y0, x1, y1, ... cover together.

    Those of less than three points cover nothing.
    """
    from pycocotools import mask

    corners = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
    far = 2 * max(height, width)
    for polygon in corners:
        # An outline is drawn point by point, in memory, however far away it is.
        if polygon.ndim != 1 or len(polygon) % 2 or not (np.abs(polygon) <= far).all():
            raise ValueError("a polygon is no list of x, y in the image")
    corners = [polygon.tolist() for polygon in corners if len(polygon) >= 6]
    if not corners:
        return {"size": [height, width], "counts": [height * width]}
    runs = mask.merge(mask.frPyObjects(corners, height, width))
    return runs | {"counts": runs["counts"].decode()}


def runs_of(counts: list[int] | str) -> np.ndarray:
    """Lengths of runs of pixels, int64: uncovered, covered, uncovered, ...

    In text a run has a character per 5 bits, the lowest first, MORE in all but its last, and from
    the fourth run on it is the difference to the one before the last (COCO's maskApi.c).
    """
    if not isinstance(counts, str):
        return np.array([int(count) for count in counts], dtype=np.int64)
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = codes & MORE == 0
    if not len(codes) or codes.min() < 0 or codes.max() > BITS + MORE or not last[-1]:
        raise ValueError("its counts are no run lengths, or cut off")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digits = ends - starts + 1
    if digits.max() > MAX_DIGITS:
        raise ValueError("its counts have a run of more than 50 bits")
    places = np.arange(len(codes)) - np.repeat(starts, digits)
    runs = np.add.reduceat((codes & BITS) << 5 * places, starts)
    runs -= np.where(codes[ends] & NEGATIVE, 1 << 5 * digits, 0)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs
