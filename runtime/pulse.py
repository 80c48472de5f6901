"""Signs of life of the ranks, and their agreement on the step after which they stop.

Both go over the host alone: nothing in here waits for a GPU."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import distributed
from .distributed import PATIENCE, Ranks
from .files import discard_unfinished
from .signals import asked

BEAT = 5  # seconds between two signs of life, at most
LAST_WORK = 60  # seconds for a checkpoint that is being written when a job is given up


class Sign(NamedTuple):
    """What a rank says of itself."""

    count: int  # of signs so far
    step: int  # the step it is in, from 1
    doing: str
    aside: bool  # whether that may take as long as it likes


class Pulse:
    """Of this rank, in a loop over steps.

        with Pulse(ranks, step, patience=600) as pulse:
            while ...:
                with pulse.doing("waiting for data"):
                    ...
                if pulse.stops():
                    ...

    Where no step ends for `patience` seconds, the ranks read each other's signs in torchrun's
    store, one of them says who is late, and all exit with 1.

    Args:
        step: steps done before.
        patience: 0: for ever.
    """

    def __init__(self, ranks: Ranks, step: int, *, patience: float) -> None:
        self.ranks, self.patience = ranks, patience
        self.sign = Sign(0, step + 1, "computing", aside=False)
        self.moved = time.monotonic()
        self.every = min(BEAT, patience / 4) or BEAT
        self.ended = threading.Event()
        self.answer: tuple[dist.Work, Tensor] | None = None
        self.threads = [threading.Thread(target=t, daemon=True) for t in (self.beat, self.watch)]

    def __enter__(self) -> "Pulse":
        if self.ranks.size > 1:
            self.group = dist.new_group(backend="gloo", timeout=PATIENCE)
            for thread in self.threads if self.patience else ():
                thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.ended.set()
        for thread in self.threads:
            if thread.is_alive():
                thread.join(timeout=5)

    def at(self, step: int) -> None:
        """That many steps are done."""
        self.sign = self.sign._replace(step=step + 1)
        self.moved = time.monotonic()

    @contextmanager
    def doing(self, what: str, *, aside: bool = False) -> Iterator[None]:
        """Within, the rank does something else than computing."""
        before = self.sign
        self.sign, self.moved = before._replace(doing=what, aside=aside), time.monotonic()
        yield
        self.sign, self.moved = before, time.monotonic()

    def stops(self) -> bool:
        """Whether all ranks stop after this step; every rank calls after every step.

        Each says whether it was asked to, and reads what all said a step before: that has arrived
        while this step was computed.
        """
        if self.ranks.size == 1:
            return asked.by is not None
        said = torch.tensor([asked.by is not None], dtype=torch.uint8)
        work = dist.all_reduce(said, dist.ReduceOp.MAX, group=self.group, async_op=True)
        before, self.answer = self.answer, (work, said)
        if before is None:
            return False
        work, said = before
        work.wait()
        return bool(said)

    def beat(self) -> None:
        """Leave signs in the store."""
        try:
            store = distributed.job_store(timedelta(seconds=30))
            count = 0
            while not self.ended.wait(self.every):
                count += 1
                store.set(self.key(self.ranks.rank), json.dumps(self.sign._replace(count=count)))
        except RuntimeError:  # the store is gone; whoever waits for a step in vain will say so
            return

    def watch(self) -> None:
        """Give the job up when no step ends."""
        while not self.ended.wait(self.every):
            if self.sign.aside or time.monotonic() - self.moved < self.patience:
                continue
            verdict = distributed.within(30 + 4 * self.every, self.verdict)
            verdict = self.unanswered if verdict is None else verdict
            if verdict and not self.ended.is_set():
                self.give_up(verdict)
            self.moved = time.monotonic()

    @property
    def unanswered(self) -> str:
        return (
            f"the job's store at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} does not "
            f"answer process {self.ranks.rank}: its host or the network is gone"
        )

    def verdict(self) -> str:
        """Who is late; "": the job goes on, or a rank does something that may take long."""
        store = distributed.job_store(timedelta(seconds=30))
        before = self.signs(store)
        time.sleep(2.5 * self.every)
        after = self.signs(store)
        silent = [rank for rank, sign in after.items() if sign.count == before[rank].count]
        if silent:
            return "; ".join(
                f"process {rank} does not answer, last heard of in step {after[rank].step}, "
                f"{after[rank].doing}" for rank in silent
            )  # fmt: skip
        both = zip(before.values(), after.values(), strict=True)
        if any(now.aside or then[1:] != now[1:] for then, now in both):
            return ""
        first = min(sign.step for sign in after.values())
        late = {rank: sign for rank, sign in after.items() if sign.step == first}
        elsewhere = {rank: sign for rank, sign in late.items() if sign.doing != "computing"}
        if len(late) == self.ranks.size and not elsewhere:
            return f"all processes answer, and none gets through step {first}"
        return "; ".join(
            f"process {rank} is late: in step {sign.step}, {sign.doing}"
            for rank, sign in (elsewhere or late).items()
        )

    def signs(self, store: dist.TCPStore) -> dict[int, Sign]:
        """Of all ranks by their numbers."""
        found = {}
        for rank in range(self.ranks.size):
            key = self.key(rank)
            left = json.loads(store.get(key)) if store.check([key]) else (0, 1, "starting", False)
            found[rank] = Sign(*left)
        return found

    def give_up(self, verdict: str) -> None:
        if distributed.within(5, self.tellers) in (None, 1):
            waited = f"no step has ended for {self.patience:g} seconds"
            print(f"error: {waited}: {verdict}", file=sys.stderr, flush=True)
        distributed.finish_work(LAST_WORK)
        discard_unfinished()
        os._exit(1)

    def tellers(self) -> int:
        """How many ranks have given the job up, this one included."""
        store = distributed.job_store(timedelta(seconds=5))
        return store.add("given-up-" + distributed.attempt(), 1)

    @staticmethod
    def key(rank: int) -> str:
        return f"sign-of-{rank}-{distributed.attempt()}"
