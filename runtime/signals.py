"""SIGTERM and SIGUSR1, by which a cluster says that a job's time is nearly over."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import REQUEUE
from .files import discard_unfinished

ENDING = (signal.SIGTERM, signal.SIGUSR1)
END = b"\0"  # no signal's number


class Asked:
    """What has been asked of this process.

    Attributes:
        by: the first of the signals; None: none yet.
        deferred: whether the main thread looks at `by` itself; else the process ends at once.
    """

    by: str | None = None
    deferred = False


asked = Asked()


@contextmanager
def answered() -> Iterator[None]:
    """Within, a signal discards what is half-written and ends the process with REQUEUE: the same
    command goes on later with what is whole. A thread does it, however the main one is occupied.
    """
    if threading.current_thread() is not threading.main_thread():  # it alone may handle signals
        yield
        return
    asked.by, asked.deferred = None, False
    incoming, outgoing = os.pipe()
    os.set_blocking(outgoing, False)
    before = {number: signal.signal(number, lambda *_: None) for number in ENDING}
    descriptor = signal.set_wakeup_fd(outgoing, warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, args=[incoming], name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(outgoing, END)  # children may hold it open: closing it would not do
        thread.join()
        os.close(outgoing)
        os.close(incoming)


def listen(descriptor: int) -> None:
    """Take the numbers of the signals that arrive, as the interpreter writes them to a pipe."""
    while (received := os.read(descriptor, 1)) != END:
        if received[0] not in ENDING:
            continue
        asked.by = asked.by or signal.Signals(received[0]).name
        if not asked.deferred:
            discard_unfinished()
            if int(os.environ.get("RANK", 0)) == 0:
                print(f"stopped by {asked.by}: run it again to go on", file=sys.stderr, flush=True)
            os._exit(REQUEUE)


@contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal is only noted: whoever looks at `asked.by` ends in good order."""
    asked.deferred = True
    try:
        yield
    finally:
        asked.deferred = False


def ignored(worker: int = 0) -> None:
    """In a process that reads for another one, which ends it: a cluster sends its signals to all
    processes of a job."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
