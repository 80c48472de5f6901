"""Signs of life of the ranks, and their agreement on the step after which they stop.

Both go over the host alone: nothing in here waits for a GPU."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import distributed
from .distributed import PATIENCE, Ranks
from .files import discard_unfinished
from .signals import asked

BEAT = 5  # seconds between two signs of life, at most
ASKING, TELLING = 45, 3  # seconds, at most, to find out who is late, and to agree on who says so
LAST_WORK = 60  # seconds for a checkpoint that is being written when a job is given up


class Sign(NamedTuple):
    """What a rank says of itself."""

    count: int  # of signs so far
    step: int  # the step it is in, from 1
    doing: str
    aside: bool  # whether that may take as long as it likes


STARTING = json.dumps(Sign(0, 1, "starting", aside=False))


class Pulse:
    """Of this rank, in a loop over steps.

        with Pulse(ranks, step, patience=600) as pulse:
            while ...:
                with pulse.doing("waiting for data"):
                    ...
                if pulse.stops():
                    ...

    Where no step ends, the ranks read each other's signs in torchrun's store, one of them says who
    is late, and all have exited with 1 when `patience` seconds are over: asking and telling are
    among them, since a store that is cut off answers neither. Only a checkpoint that is being
    written is finished first.

    Args:
        step: steps done before.
        patience: 0: for ever.
    """

    def __init__(self, ranks: Ranks, step: int, *, patience: float) -> None:
        self.ranks, self.patience = ranks, patience
        self.sign = Sign(0, step + 1, "computing", aside=False)
        self.moved = time.monotonic()
        self.every = min(BEAT, patience / 12)
        self.asking, self.telling = min(ASKING, 0.4 * patience), min(TELLING, patience / 8)
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
            for number in count(1):
                store.set(self.key(self.ranks.rank), json.dumps(self.sign._replace(count=number)))
                if self.ended.wait(self.every):
                    return
        except RuntimeError:  # the store is gone; whoever waits for a step in vain will say so
            return

    def watch(self) -> None:
        """Give the job up when no step ends."""
        quiet = self.patience - self.telling - self.asking - self.every
        while not self.ended.wait(self.every):
            moved, begin = self.moved, time.monotonic()
            if self.sign.aside or begin - moved < quiet:
                continue
            verdict = distributed.within(self.asking, self.verdict)
            if verdict == "":  # all lived when they were asked
                self.moved = max(self.moved, begin)
                continue
            rest = moved + self.patience - self.telling - time.monotonic()
            if not self.ended.wait(max(0, rest)) and self.moved == moved:
                self.give_up(verdict)

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
        """Of all ranks by their numbers, in one request: all ranks ask at the same time."""
        keys = [self.key(rank) for rank in range(self.ranks.size)]
        if store.check(keys):
            left = store.multi_get(keys)
        else:  # one has not begun
            left = [store.get(key) if store.check([key]) else STARTING for key in keys]
        return {rank: Sign(*json.loads(text)) for rank, text in enumerate(left)}

    def give_up(self, verdict: str | None) -> None:
        """End the job, on this host at least. None: the store did not answer."""
        told = distributed.within(self.telling / 2, self.tellers)
        if told in (None, 1):
            waited = f"no step ends within --hang-timeout {self.patience:g}"
            print(f"error: {waited}: {verdict or self.unanswered}", file=sys.stderr, flush=True)
        distributed.finish_work(LAST_WORK)
        discard_unfinished()
        if verdict is None and told is None and (torchrun := distributed.torchrun()):
            # It hears no signal while it asks the store itself, a quarter of an hour long.
            with suppress(ProcessLookupError):
                os.kill(torchrun, signal.SIGKILL)
        os._exit(1)

    @property
    def unanswered(self) -> str:
        return (
            f"the job's store at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} does not "
            f"answer process {self.ranks.rank}: its host or the network is gone"
        )

    def tellers(self) -> int:
        """How many ranks have given the job up, this one included."""
        store = distributed.job_store(timedelta(seconds=5))
        return store.add("given-up-" + distributed.attempt(), 1)

    @staticmethod
    def key(rank: int) -> str:
        return f"sign-of-{rank}-{distributed.attempt()}"
