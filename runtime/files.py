"""Files appear under their final name complete, or not at all; what fails in passing is retried."""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, TypeVar

from .errors import InputError

T = TypeVar("T")

unfinished: set[Path] = set()  # temporary files being written now

# What network file systems answer while a server restarts or a path fails over. A missing file, a
# full disk or a lack of permission does not pass.
PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ECONNRESET,
    errno.ECONNABORTED, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETUNREACH,
}  # fmt: skip
PAUSES = (0.1, 0.5, 2.0, 8.0)  # seconds before the second try, the third, ...


def retried(action: Callable[[], T], path: str | Path) -> T:
    """What `action` returns; it is called again where the file system fails in passing.

    Args:
        path: what it reads or writes, for the error that names no file.

    Raises:
        OSError: it failed otherwise, or every time.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        except (OSError, RuntimeError) as error:
            refusal = refusal_of(error, path)
            if refusal is None:
                raise
            if refusal.errno not in PASSING or pause is None:
                raise refusal from None
            time.sleep(pause)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Errors inside say which file they are about; a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def refusal_of(error: Exception, path: str | Path) -> OSError | None:
    """What the file system said, also where torch or safetensors say it in their way; None: it is
    not about files."""
    if isinstance(error, OSError) and error.errno is not None:
        error.filename = error.filename or str(path)
        return error
    if isinstance(error, FileNotFoundError):  # safetensors says so of all that it cannot open
        number = errno.EIO if Path(path).exists() else errno.ENOENT
        return OSError(number, os.strerror(number), str(path))
    # safetensors: "Input/output error (os error 5)"; torch: "unable to mmap ...: ... error (5)"
    found = re.search(r"\(os error (\d+)\)|unable to .*\((\d+)\)", str(error))
    number = int(found[1] or found[2]) if found else None
    return OSError(number, os.strerror(number), str(path)) if found else None


class PatientFile(io.FileIO):
    """A file whose every read is retried."""

    def readinto(self, buffer) -> int | None:
        return retried(lambda: super(PatientFile, self).readinto(buffer), self.name)

    read = io.RawIOBase.read  # by readinto

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(1 << 20), b""))


def open_patiently(path: str | Path) -> io.BufferedReader:
    """A file to read; opening it and every read are retried."""
    return io.BufferedReader(retried(lambda: PatientFile(path), path))


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Open `path` for writing bytes under a temporary name; fsync and rename when the block ends.

    An error inside the block removes the temporary file and leaves an older `path` untouched.
    """
    path = Path(path)
    if not path.name:  # "/" or "."
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    unfinished.add(temporary)
    try:
        with named(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        unfinished.discard(temporary)


@contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
    """A folder for a library to write files into, which appear in `folder` when the block ends.

    Raises:
        OSError: the file system refuses, also where safetensors says so in its way.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as name:
        try:
            yield Path(name)
        except Exception as error:
            if refusal := refusal_of(error, folder):
                raise refusal from None
            raise
        paths = sorted(Path(name).iterdir())
        for path in paths:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for path in paths:
            os.replace(path, folder / path.name)
        fsync_folder(folder)


def write_patiently(path: str | Path, write: Callable[[IO[bytes]], None]) -> None:
    """`write` a file under `atomic_write`, from its beginning again where that fails in passing."""

    def once() -> None:
        with atomic_write(path) as file:
            write(file)

    retried(once, path)


@contextmanager
def locked(path: Path, called: str, *, waits: bool) -> Iterator[bool]:
    """Whether no other process is within, too.

    Args:
        path: a folder, or a file, which is made.
        called: the flag that says where it is, and its value.
        waits: until no other is.

    Raises:
        InputError: its file system has no locks.
    """
    how = os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT
    descriptor = os.open(path, how, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            alone = True
        except BlockingIOError:
            alone = False
        except OSError as error:
            raise InputError(
                f"{called}: its file system has no locks ({error.strerror}), name another"
            ) from error
        yield alone
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make a renaming outlive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard_unfinished() -> None:
    """For a process that is about to end while other threads write."""
    for temporary in list(unfinished):
        temporary.unlink(missing_ok=True)


def discard_rests(folder: Path, names: str = "*") -> None:
    """Delete what killed processes left half-written; no other may be writing there now.

    Args:
        names: a pattern of the files that they were to become.
    """
    for rest in folder.glob(f".{names}.*.tmp"):
        rest.unlink()


def sha256_of(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open_patiently(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: str | Path, content: Any) -> None:
    """For people and programs: indented, and without NaN, which is no JSON."""
    text = json.dumps(content, indent=2, allow_nan=False).encode() + b"\n"
    write_patiently(path, lambda file: file.write(text))
