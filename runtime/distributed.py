"""Ranks of a torchrun job; the same code is one plain process without torchrun."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError, sentence_of
from .files import discard_unfinished

T = TypeVar("T")

LEAVE = b"leave"
LAST_WORK = 120  # seconds that ranks wait for one that is writing a checkpoint
# What a process waits for before it leaves at once: a checkpoint that is being written.
unfinished: list[Callable[[], None]] = []


@dataclass(frozen=True)
class Ranks:
    """This process among all: `rank` of `size`, computing on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks; the one collective of the log line."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def gather(self, part: T) -> list[T] | None:
        """Every rank's `part`, in the order of the ranks, on rank 0; None on the others."""
        if self.size == 1:
            return [part]
        parts = [None] * self.size if self.is_main else None
        dist.gather_object(part, parts)
        return parts

    def from_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 alone; every rank gets its result, or its InputError.

        What the file system refuses is an InputError too.
        """
        outcome: list = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except InputError as error:
                outcome[1] = str(error)
            except OSError as error:  # a folder that cannot be written, a full disk
                outcome[1] = sentence_of(error)
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0, device=self.device)
        result, sentence = outcome
        if sentence is not None:
            raise InputError(sentence)
        return result


def start(device: str = "auto", patience: timedelta = timedelta(minutes=30)) -> Ranks:
    """Join the job that torchrun describes in the environment, if there is one.

    Args:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        patience: how long a rank may wait for the others before the job is given up.

    Raises:
        InputError: CUDA asked for and absent, or more processes on this host than GPUs.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda":
        if not gpus:
            raise InputError("--device cuda, but torch sees no GPU here: use --device cpu")
        if local_size > gpus:
            raise InputError(
                f"{local_size} processes on a host with {gpus} GPUs: "
                f"use torchrun --nproc_per_node={gpus}, or --device cpu"
            )
        # LOCAL_RANK, not the global rank: on the second node rank 8 is GPU 0 again.
        torch.cuda.set_device(local_rank)
    target = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    if size > 1:
        backend = "nccl" if device == "cuda" else "gloo"
        bound = target if device == "cuda" else None
        dist.init_process_group(backend, timeout=patience, device_id=bound)
        watch_others(rank, size)
    return Ranks(rank, size, target)


def watch_others(rank: int, size: int) -> None:
    """Exit with 2 as soon as a rank says that it leaves because of bad input.

    The others may wait for it in a collective, where only another thread can act. The thread
    sleeps in one blocking request on a connection of its own, and is woken to end before the
    interpreter does: a thread that comes back from C++ later aborts the process.
    """
    key = word_for(rank)

    def wait() -> None:
        try:
            store = failures_store(timedelta(days=3650))
            store.wait([key])
            word = store.get(key)
        except RuntimeError:  # the store ended with the job
            return
        if word == LEAVE:
            for finish in unfinished:
                finish()
            discard_unfinished()
            store.add("left-" + attempt(), 1)
            all_have_left(store, size, seconds=LAST_WORK)
            os._exit(2)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()

    def wake() -> None:
        # RuntimeError: the store is gone, and the thread with it.
        with suppress(RuntimeError):
            failures_store(timedelta(seconds=30)).set(key, "done")
        thread.join(timeout=5)

    atexit.register(wake)


def leave(sentence: str, *, alone: bool) -> None:
    """Exit with 2 at the same time as the other ranks: when one is gone, torchrun ends those that
    are left with a signal, whatever they are writing.

    Args:
        sentence: why, for people; one rank says it.
        alone: only this rank knows; else all are about to leave, rank 0 speaks, and the first waits
            for the last. If they do not come, this rank was alone after all (a file that one node
            lacks, say).
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    store_is_up = dist.is_initialized() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    speaks = alone or rank == 0
    if speaks and sentence:
        print(sentence, file=sys.stderr, flush=True)
    if size > 1 and store_is_up:
        store = failures_store(timedelta(seconds=30))
        for finish in unfinished:
            finish()
        store.add("left-" + attempt(), 1)
        if alone or not all_have_left(store, size, seconds=5):
            if sentence and not speaks:
                print(sentence, file=sys.stderr, flush=True)
            for other in set(range(size)) - {rank}:
                store.set(word_for(other), LEAVE)
            all_have_left(store, size, seconds=LAST_WORK)
        sys.stdout.flush()
        os._exit(2)  # the interpreter's own end takes longer than torchrun waits
    sys.exit(2)


def all_have_left(store: dist.TCPStore, size: int, seconds: float) -> bool:
    """Wait for it, as long as that."""
    deadline = time.monotonic() + seconds
    while store.add("left-" + attempt(), 0) < size:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def failures_store(timeout: timedelta) -> dist.TCPStore:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=timeout)


def attempt() -> str:
    """torchrun's store outlives a restart of the job."""
    return f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def word_for(rank: int) -> str:
    return f"word-for-{rank}-{attempt()}"


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
