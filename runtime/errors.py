"""Errors that a person can mend: one sentence, exit code 2, no traceback."""

from typing import Any

REQUEUE = 75  # exit code: asked to stop, and the same command goes on; sysexits.h' EX_TEMPFAIL


class Requeue(Exception):  # noqa: N818  # nothing is wrong
    """All ranks stop in good order to go on later; the sentence says where."""


class InputError(ValueError):
    """Bad input that every rank sees alike; rank 0 says the sentence, all exit with 2."""


class LocalError(InputError):
    """Bad input that one rank alone may see (a corrupt image, say); that rank says it."""


MOST_LETTERS = 2000  # of a sentence; what it quotes may be long


def one_line(text: str) -> str:
    """What a terminal shows as it is, in one line: names from outside may hold line ends, commands
    to a terminal, or letters that turn the direction of the others."""
    cut = text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}..."
    return "".join(letter if is_plain(letter) else escaped(letter) for letter in cut)


def is_plain(value: Any) -> bool:
    """Of text, whether it is letters that are shown as they are; other values are."""
    return not isinstance(value, str) or value.isprintable()


def escaped(letter: str) -> str:
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()


def out_of_memory(error: BaseException) -> bool:
    """Of Python, numpy, torch on a CPU, or a GPU."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "out of memory" in text)
    )


def sentence_of(error: OSError) -> str:
    """What the file system refused, of which file; of a rename, the file's new name."""
    name = error.filename2 or error.filename or "a file or standard output"
    return f"{name}: {error.strerror or error}"
