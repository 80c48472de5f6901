"""How every command ends: cleanly, or with one sentence and exit code 2."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import distributed
from .errors import InputError, LocalError


def run(main: Callable[[], None]) -> None:
    """Call `main`; turn bad input into `error: sentence` on stderr and exit code 2."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if not speaks():
        warnings.simplefilter("ignore")
    try:
        main()
    except InputError as error:
        if speaks() or isinstance(error, LocalError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        distributed.store_failure(str(error))
        sys.exit(2)
    except FloatingPointError as error:  # a loss that is not finite: every rank sees the same
        if speaks():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except RuntimeError:
        if distributed.another_rank_failed():
            sys.exit(2)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    distributed.stop()


def speaks() -> bool:
    """Is this the one process of the job that talks?"""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def asked_of_user() -> Iterator[None]:
    """Around code that builds things from flags: its ValueErrors are sentences for the user."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error
