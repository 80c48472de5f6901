"""What a reader may do with any bytes: give something back, or refuse them in one sentence."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.errors import one_line

MOST = 2**26  # bytes that a reader may allocate for a file of less than a megabyte


def refused(
    read: Callable[[], Any], *sentences: type[Exception], counted: bool = True
) -> str | None:
    """Why a reader refuses; None: it reads. Any other exception, or (counted) much memory, is a
    failure."""
    if counted:
        tracemalloc.start()
    try:
        read()
        return None
    except sentences as error:
        said = one_line(str(error))
        assert said.strip() and "\n" not in said and said.isprintable()
        return said
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST, f"{peak:,} bytes"


def edited(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Bytes with parts of them replaced: (where, from 0 to 1; how many are lost; what comes)."""
    for place, lost, new in edits:
        begin = int(place * len(content))
        content = content[:begin] + new + content[begin + lost :]
    return content


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
