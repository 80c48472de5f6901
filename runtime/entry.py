"""How every command ends: cleanly, or with one sentence and exit code 2."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import distributed, signals
from .distributed import LAST_WORK
from .errors import (
    REQUEUE,
    InputError,
    LocalError,
    Requeue,
    one_line,
    out_of_memory,
    sentence_of,
)

# What standard output, which has no name, answers: a full disk under it, or nobody who reads.
UNPRINTED = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE}


def run(main: Callable[[], None]) -> None:
    """Call `main`; turn bad input into `error: sentence` on stderr and exit code 2."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    for own in ("local_dir_use_symlinks", "torch.nn.utils.weight_norm", "torch_dtype.*deprecated"):
        warnings.filterwarnings("ignore", message=f".*{own}")  # diffusers' own
    if not speaks():
        warnings.simplefilter("ignore")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a flag may hold bytes that are no letters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with signals.answered():
            main()
    except Requeue as stop:
        distributed.leave(str(stop), alone=False, code=REQUEUE)
    except InputError as error:
        distributed.leave(f"error: {one_line(str(error))}", alone=isinstance(error, LocalError))
    except SystemExit as stop:  # tyro has said what is wrong with the flags
        if stop.code == 2:
            distributed.leave("", alone=False)
        raise
    except FloatingPointError as error:  # training broke down on all ranks, or samples on one
        distributed.leave(f"error: {one_line(str(error))}", alone=False, code=1)
    except OSError as error:
        if error.filename is None:
            if error.errno not in UNPRINTED:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter would try once more
        distributed.leave(f"error: {one_line(sentence_of(error))}", alone=True)
    except (MemoryError, RuntimeError) as error:
        if distributed.is_lost(error):
            reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
            print(f"error: another process has ended ({reason})", file=sys.stderr, flush=True)
            distributed.finish_work(LAST_WORK)
            os._exit(1)  # the interpreter's own end may wait for the others
        if not out_of_memory(error):
            raise
        reason = str(error).split("\n")[0] or "Python's"
        distributed.leave(f"error: there is not enough memory ({one_line(reason)})", alone=True)
    except KeyboardInterrupt:
        sys.exit(130)
    distributed.stop()


def speaks() -> bool:
    """Is this the one process of the job that talks?"""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def asked_of_user(about: str = "") -> Iterator[None]:
    """Around code that builds things from flags: its ValueErrors are sentences for the user.

    Args:
        about: the file that the sentence is about, where it does not say so itself.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{about}: {error}" if about else str(error)) from error
