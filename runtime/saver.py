"""Checkpoints written in a thread: training waits only while the state is copied to the host."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint, distributed
from .distributed import Ranks
from .errors import LocalError, sentence_of
from .parallel import whole


class Saver:
    """Writes `folder/checkpoints/{step:07d}.pt`, then deletes what need not be kept.

    A save waits for the one before it. The copy goes through buffers that the first save makes: 16
    bytes per parameter of host memory on rank 0. On CUDA they are page-locked, which makes the copy
    as fast as the bus, and rounded up to powers of two (14 GB for XL/2).
    """

    def __init__(self, folder: Path, ranks: Ranks, *, keep_last: int, milestone_every: int) -> None:
        self.folder, self.ranks = folder, ranks
        self.keep_last, self.milestone_every = keep_last, milestone_every
        self.buffers: dict[str, Tensor] = {}
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future | None = None
        distributed.unfinished.append(self.settle)

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Begin to write a checkpoint. Every rank calls; rank 0 writes whole tensors.

        Raises:
            LocalError: the save before this one failed, on rank 0.
        """
        self.wait()
        copy = self.copied(content, "")
        if self.ranks.is_main:
            if self.ranks.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
            self.writing = self.thread.submit(self.write, step, copy)

    def wait(self) -> None:
        """Until the checkpoint being written is on the disk.

        Raises:
            LocalError: it could not be written.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def settle(self) -> None:
        """Until nothing is being written, whatever became of it."""
        if self.writing is not None:
            wait([self.writing])

    def check(self) -> None:
        """Raise what has gone wrong with a finished save; never waits."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def copied(self, value: Any, name: str) -> Any:
        """The same nested content with its tensors whole and on the host."""
        if isinstance(value, dict):
            return {key: self.copied(part, f"{name}/{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [self.copied(part, f"{name}/{i}") for i, part in enumerate(value)]
        if not isinstance(value, Tensor):
            return value
        value = whole(value)
        if not self.ranks.is_main:
            return None
        if name not in self.buffers:
            pinned = value.device.type == "cuda"
            self.buffers[name] = torch.empty_like(value, device="cpu", pin_memory=pinned)
        return self.buffers[name].copy_(value, non_blocking=True)

    def write(self, step: int, content: dict[str, Any]) -> None:
        path = self.folder / "checkpoints" / f"{step:07d}.pt"
        try:
            checkpoint.save(path, content)
        except (OSError, RuntimeError) as error:  # torch.save wraps what the file system says
            reason = error.strerror if isinstance(error, OSError) else str(error).split("\n")[0]
            raise LocalError(
                f"checkpoint {path} could not be written ({reason}): make room, then --resume auto"
            ) from error
        try:
            checkpoint.prune(self.folder, self.keep_last, self.milestone_every)
        except OSError as error:
            raise LocalError(
                f"an old checkpoint could not be deleted ({sentence_of(error)}): when that is "
                "mended, --resume auto"
            ) from error
