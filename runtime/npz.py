"""Arrays of many batches, each written once and whole, then packed into one .npz."""

import zipfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO

import numpy as np

from .files import open_patiently, write_patiently


class Blocks:
    """A folder of blocks of consecutive samples: {first}.{part}.npz with `index` and the arrays.

    A block appears under its name complete or not at all, so any number of processes may write,
    and an interrupted run finds what is left to do.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, first: int, part: int = 0) -> Path:
        return self.folder / f"{first:010d}.{part}.npz"

    def write(self, first: int, part: int = 0, **arrays: np.ndarray) -> None:
        write_patiently(self.path(first, part), lambda file: np.savez(file, **arrays))

    def rounds(self, name: str) -> Iterator[np.ndarray]:
        """One array in the order of the samples' index, a round of blocks at a time."""
        paths = sorted(self.folder.glob("*.npz"))
        for _, group in groupby(paths, key=lambda path: path.name.split(".")[0]):
            indices, parts = [], []
            for path in group:
                with open_patiently(path) as file, np.load(file, allow_pickle=False) as block:
                    indices.append(block["index"])
                    parts.append(block[name])
            yield np.concatenate(parts)[np.argsort(np.concatenate(indices))]

    def whole(self, name: str, count: int) -> np.ndarray:
        """The first `count` rows of a small array."""
        return np.concatenate(list(self.rounds(name)))[:count]

    def pack(self, path: Path, names: list[str], count: int) -> None:
        """Stream the first `count` rows of the named arrays into `path`: an uncompressed .npz.

        Memory stays at one round of blocks, whatever the count. Equal blocks give equal bytes.
        """

        def write(file: IO[bytes]) -> None:
            with zipfile.ZipFile(file, "w") as archive:
                self.fill(archive, names, count)

        write_patiently(path, write)

    def fill(self, archive: zipfile.ZipFile, names: list[str], count: int) -> None:
        for name in names:
            entry = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed
            first = next(self.rounds(name))
            with archive.open(entry, "w", force_zip64=True) as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(first.dtype),
                    "fortran_order": False,
                    "shape": (count, *first.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(member, header)
                left = count
                for part in self.rounds(name):
                    rows = np.ascontiguousarray(part[:left])
                    member.write(rows.tobytes())
                    left -= len(rows)
                assert left == 0, f"{left} of {count} samples are missing"
