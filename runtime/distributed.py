"""Ranks of a torchrun job; the same code is one plain process without torchrun."""

import atexit
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError, sentence_of
from .files import discard_unfinished

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)  # how long a rank may wait for the others
LEAVE = "leave with "
TORCHRUN = {b"torchrun", b"torch.distributed.run", b"torch.distributed.launch"}
LAST_WORK = 120  # seconds that ranks wait for one that is writing a checkpoint
drawn = ""  # the name of this attempt, where torchrun's store outlives it
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


def start(device: str = "auto", patience: timedelta = PATIENCE) -> Ranks:
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
        store = store_of_this_attempt(rank, size, patience)
        joined = dict(store=store, rank=rank, world_size=size) if store else {}
        dist.init_process_group(backend, timeout=patience, device_id=bound, **joined)
        watch_others(rank, size)
    return Ranks(rank, size, target)


def start_alone(name: str, device: str = "auto") -> Ranks:
    """As `start`, for a command that is one process.

    Args:
        name: the command, as the user calls it.

    Raises:
        InputError: it is one of several, or as in `start`.
    """
    ranks = start(device)
    if ranks.size > 1:
        raise InputError(f"{name} runs in one process: start it without torchrun")
    return ranks


def watch_others(rank: int, size: int) -> None:
    """Exit as soon as a rank says that it leaves, with the code that it says.

    The others may wait for it in a collective, where only another thread can act. The thread
    sleeps in one blocking request on a connection of its own, and is woken to end before the
    interpreter does: a thread that comes back from C++ later aborts the process.
    """
    key = word_for(rank)

    def wait() -> None:
        try:
            store = job_store(timedelta(days=3650))
            store.wait([key])
            word = store.get(key).decode()
        except RuntimeError:  # the store ended with the job
            return
        if word.startswith(LEAVE):
            for finish in unfinished:
                finish()
            discard_unfinished()
            store.add("left-" + attempt(), 1)
            all_have_left(store, size, seconds=LAST_WORK)
            os._exit(int(word.removeprefix(LEAVE)))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()

    def wake() -> None:
        # RuntimeError: the store is gone, and the thread with it.
        with suppress(RuntimeError):
            job_store(timedelta(seconds=30)).set(key, "done")
        thread.join(timeout=5)

    atexit.register(wake)


def leave(sentence: str, *, alone: bool, code: int = 2) -> None:
    """Exit with `code` at the same time as the other ranks: when one is gone, torchrun ends those
    that are left with a signal, whatever they are writing.

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
        store = job_store(timedelta(seconds=30))
        for finish in unfinished:
            finish()
        store.add("left-" + attempt(), 1)
        if alone or not all_have_left(store, size, seconds=5):
            if sentence and not speaks:
                print(sentence, file=sys.stderr, flush=True)
            for other in set(range(size)) - {rank}:
                store.set(word_for(other), f"{LEAVE}{code}")
            all_have_left(store, size, seconds=LAST_WORK)
        sys.stdout.flush()
        os._exit(code)  # the interpreter's own end takes longer than torchrun waits
    sys.exit(code)


def finish_work(seconds: float) -> None:
    """Let a checkpoint that is being written be finished, for as long as that."""
    within(seconds, lambda: [finish() for finish in unfinished])


def within(seconds: float, action: Callable[[], T]) -> T | None:
    """What `action` returns; None where that takes longer, or it fails for want of an answer."""
    found: list[T] = []

    def act() -> None:
        with suppress(RuntimeError):
            found.append(action())

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(timeout=seconds)
    return found[0] if found else None


def is_lost(error: RuntimeError) -> bool:
    """Whether it says that another rank is gone: torch has no class of error for that on CPUs."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def all_have_left(store: dist.TCPStore, size: int, seconds: float) -> bool:
    """Wait for it, as long as that."""
    deadline = time.monotonic() + seconds
    with suppress(RuntimeError):  # rank 0, the store's host without torchrun's, has counted all
        while store.add("left-" + attempt(), 0) < size:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True


def job_store(timeout: timedelta) -> dist.TCPStore:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=timeout)


def torchrun() -> int | None:
    """The process of torchrun, where it is this one's parent: there may be a script between them,
    and a process whose torchrun is gone has been given to another one."""
    parent = os.getppid()
    with suppress(OSError):  # this is no Linux, or the parent is in another namespace
        words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
        if TORCHRUN & set(map(os.path.basename, words)):
            return parent
    return None


def store_of_this_attempt(rank: int, size: int, patience: timedelta) -> dist.Store | None:
    """torchrun's store as this attempt of the job sees it; None: rank 0 hosts one itself.

    The store outlives a restart with all that the ranks before have written, among it the addresses
    at which they listened; and hosts count restarts apart. So rank 0 draws a name for the attempt
    and answers every rank that asks for it; what is left of ranks that are gone, nobody reads.
    """
    global drawn
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = job_store(patience)
    if rank > 0:
        question = secrets.token_hex(8)
        store.set(f"question-of-{rank}", question)
        drawn = store.get(f"answer-to-{question}").decode()
        store.add(f"joined-{drawn}", 1)
        return dist.PrefixStore(drawn, store)
    drawn, answered = secrets.token_hex(8), set()
    deadline = time.monotonic() + patience.total_seconds()
    while store.add(f"joined-{drawn}", 0) < size - 1:
        if time.monotonic() > deadline:
            raise InputError(f"only {len(answered) + 1} of {size} processes have started")
        asking = [key for r in range(1, size) if store.check([key := f"question-of-{r}"])]
        for question in {store.get(key).decode() for key in asking} - answered:
            store.set(f"answer-to-{question}", drawn)
            answered.add(question)
        time.sleep(0.01)
    return dist.PrefixStore(drawn, store)


def attempt() -> str:
    """A name of this attempt of the job for keys in the store."""
    return drawn or f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def word_for(rank: int) -> str:
    return f"word-for-{rank}-{attempt()}"


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
