"""Errors that a person can mend: one sentence, exit code 2, no traceback."""


class InputError(ValueError):
    """Bad input that every rank sees alike; rank 0 says the sentence, all exit with 2."""


class LocalError(InputError):
    """Bad input that one rank alone may see (a corrupt image, say); that rank says it."""


def sentence_of(error: OSError) -> str:
    """What the file system refused, of which file; of a rename, the file's new name."""
    return f"{error.filename2 or error.filename or 'a file'}: {error.strerror or error}"
