"""Arrays on disk that several processes write, each its own rows."""

import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.files import fsync_folder

ABANDONED = 24 * 3600  # seconds without a row: the job that made a temporary file was killed


class Rows:
    """A .npy of known shape under a temporary name. One process makes it, all write rows of theirs,
    one finishes it.

    Attributes:
        attempt: a name that the processes of one job share, and no other job: two may look at the
            same thing at the same time, and what either publishes is whole.

    Rows are written with pwrite and not through a shared memory map, which network file systems do
    not keep coherent between hosts.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self.attempt = ""
        self.row = math.prod(shape[1:]) * self.dtype.itemsize

    @property
    def temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{self.attempt}.tmp")

    def create(self) -> None:
        """All its room is taken at once: a full disk is met here, and not in the middle. What jobs
        that were killed have left of it is deleted.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for rest in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            if time.time() - rest.stat().st_mtime > ABANDONED:
                rest.unlink(missing_ok=True)
        try:
            with open(self.temporary, "wb") as file:
                header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()
                os.posix_fallocate(file.fileno(), file.tell(), max(1, self.row * self.shape[0]))
                os.ftruncate(file.fileno(), file.tell() + self.row * self.shape[0])
        except OSError as error:
            self.discard()
            error.filename = error.filename or str(self.path)
            raise

    def write(self, first: int, values: Tensor) -> None:
        """Rows from `first` on.

        Raises:
            ValueError: a value that the type does not hold.
        """
        kind = torch.from_numpy(np.empty(0, self.dtype)).dtype
        values = values.to(kind)
        if values.is_floating_point() and not values.isfinite().all():
            raise ValueError(f"features beyond {self.dtype}: the network has diverged")
        content = np.ascontiguousarray(values.cpu().numpy()).tobytes()
        with open(self.temporary, "r+b") as file:
            begin = os.fstat(file.fileno()).st_size - self.row * self.shape[0]
            os.pwrite(file.fileno(), content, begin + first * self.row)

    def finish(self) -> None:
        with open(self.temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)
        fsync_folder(self.path.parent)

    def discard(self) -> None:
        self.temporary.unlink(missing_ok=True)
