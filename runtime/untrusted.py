"""What is asked of a file from outside before anything of its size is allocated: names, JSON, text,
arrays of numpy, zip archives. tensors.py does the same for checkpoints; SECURITY.md says why."""

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from .errors import InputError
from .files import open_patiently, retried

# Parsing multiplies a JSON by up to 30. REPA's list of ImageNet has 45 MB, SSv2's lists 30.
MOST_JSON = 2**28
MOST_TEXT = 2**26  # bytes of a list or a table; MTG-Jamendo's largest has 6 MB
MOST_NAME = 4096  # bytes of a path: Linux opens no longer one
MOST_BLOCK = 2**31  # bytes of names or labels of all samples; ImageNet's have 100 MB
MOST_ARRAY = 2**29  # bytes of an array that is read whole: a covariance of 8,192 features
MOST_SAMPLE = 2**28  # bytes of one sample of an array that is read in parts: 80 frames in 1080p
MOST_MEMBERS = 100_000  # of an archive; a checkpoint has a member per tensor
DEFLATE = 1032  # no deflated byte stands for more
MOST_HEADER = 10_000  # bytes of a .npy file's header, numpy's own limit
NUMBERS_AND_TEXT = "biufcUS"  # kinds of arrays that are read; V and O may hold anything


def name_inside(name: Any) -> str:
    """The path of a file below a folder, as a file in that folder has it.

    Raises:
        ValueError: it is none, or leads elsewhere.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{shown(name)} is no name of a file")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{shown(name)} is no text") from None
    if size > MOST_NAME:
        raise ValueError(f"{shown(name)} is a name of {size} bytes")
    if any(ord(letter) < 32 for letter in name):
        raise ValueError(f"{shown(name)} is no name of a file")
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{shown(name)} leads out of its folder")
    return name


def block_of(texts: Sequence[str]) -> np.ndarray:
    """Texts as one block of bytes (N,): workers would copy a list, because counting references
    writes to it. Each takes the room of the longest.

    Raises:
        ValueError: too much room.
    """
    rows = [text.encode() for text in texts]
    if len(rows) * max(map(len, rows), default=0) > MOST_BLOCK:
        raise ValueError(f"{len(rows):,} texts, the longest of {max(map(len, rows)):,} bytes")
    return np.array(rows)


def shown(value: Any) -> str:
    """Anything, in a sentence."""
    return repr(value)[:60]


def read_text(path: Path, errors: str = "strict") -> str:
    """
    Raises:
        OSError: it cannot be read.
        ValueError: it is too large for a table, or no UTF-8.
    """
    return read_bytes(path, MOST_TEXT).decode(errors=errors)


def read_bytes(path: Path, most: int) -> bytes:
    with open_patiently(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise ValueError(f"it has {size:,} bytes, and {most:,} are read at most")
        return file.read()


def parsed(text: str | bytes) -> Any:
    """What a JSON says.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_of(path: Path) -> Any:
    """What the JSON in a file says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or no JSON.
    """
    return parsed(read_bytes(path, MOST_JSON))


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: there is no such file, or it is no JSON object.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        content = json_of(path)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object")
    return content


class Header(NamedTuple):
    """What an array's own header says of it."""

    shape: tuple[int, ...]
    in_columns: bool
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def array_header(file: IO[bytes]) -> Header:
    """The header of a .npy file; the file is then at its values.

    Raises:
        ValueError: it is none, or of an array of anything but numbers or text.
    """
    start = file.read(8)
    if start[:6] != np.lib.format.MAGIC_PREFIX or len(start) < 8 or start[6] not in (1, 2, 3):
        raise ValueError("it is no array of numpy")
    form = "<H" if start[6] == 1 else "<I"
    prefix = file.read(struct.calcsize(form))
    (size,) = struct.unpack(form, prefix) if len(prefix) == struct.calcsize(form) else (0,)
    if not 0 < size <= MOST_HEADER:
        raise ValueError(f"its header has {size} bytes")
    numpys = np.lib.format
    read = numpys.read_array_header_1_0 if start[6] == 1 else numpys.read_array_header_2_0
    try:
        header = Header(*read(io.BytesIO(prefix + file.read(size))))
    except Exception as error:  # it is Python source to numpy, whose parser and tokenizer complain
        raise ValueError(f"its header is none of numpy's ({shown(error)})") from error
    if header.dtype.kind not in NUMBERS_AND_TEXT or header.dtype.subdtype:
        raise ValueError(f"it is an array of {header.dtype}")
    if any(type(length) is not int or not 0 <= length < 2**62 for length in header.shape):
        raise ValueError(f"its shape is {shown(header.shape)}")
    return header


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file, in memory, or mapped: read when it is used.

    Raises:
        OSError: there is no such file.
        ValueError: damaged, or larger than it may be.
    """
    with open_patiently(path) as file:
        header = array_header(file)
        there = os.fstat(file.fileno()).st_size - file.tell()
        check_size(header, there, most=None if mapped else MOST_ARRAY)
        if not mapped:
            file.seek(0)
            return np.load(file, allow_pickle=False)
    return retried(lambda: np.load(path, mmap_mode="r", allow_pickle=False), path)


def check_size(header: Header, there: int, most: int | None) -> None:
    """
    Raises:
        ValueError: other than its header says, or more than is read at once.
    """
    if header.bytes != there:
        raise ValueError(f"{header.dtype} {shown(header.shape)} in {there:,} bytes")
    if most is not None and there > most:
        raise ValueError(f"it has {there:,} bytes, and {most:,} are read at most")


def is_archive(path: Path) -> bool:
    """Whether it is a zip file; zipfile itself takes a read that fails for a no."""
    with open_patiently(path) as file:
        return zipfile.is_zipfile(file)


class PatientArchive(zipfile.ZipFile):
    """A zip file whose every read is retried: zipfile takes one that fails for damage."""

    def __init__(self, path: Path) -> None:
        self.content = open_patiently(path)
        super().__init__(self.content)

    def close(self) -> None:
        super().close()
        self.content.close()


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip file whose directory can be true: no member is larger than what it is stored in can
    stand for, none shares its bytes with another, no name leads out of it.

    Raises:
        OSError: there is no such file.
        ValueError: damaged, or untrue.
    """
    try:
        archive = PatientArchive(path)
    except OSError:
        raise
    except Exception as error:  # BadZipFile, and what its parts raise on bytes of no directory
        raise ValueError(f"it is no archive ({shown(error)})") from error
    try:
        check_members(archive.infolist(), os.path.getsize(path))
    except ValueError:
        archive.close()
        raise
    return archive


def check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """
    Raises:
        ValueError: see `open_archive`.
    """
    if len(members) > MOST_MEMBERS:
        raise ValueError(f"it has {len(members):,} members")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("it has two members of one name")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its members overlap, or reach beyond its end")
    for member in members:
        name_inside(member.filename)
        stored = member.compress_type == zipfile.ZIP_STORED
        if not stored and member.compress_type != zipfile.ZIP_DEFLATED:
            raise ValueError(f"{member.filename} is compressed by method {member.compress_type}")
        if member.file_size > member.compress_size * (1 if stored else DEFLATE):
            raise ValueError(
                f"{member.filename} claims {member.file_size:,} bytes in {member.compress_size:,}"
            )


class Member(NamedTuple):
    """An array in an archive: its header, and its values to read."""

    header: Header
    file: IO[bytes]


def open_member(archive: zipfile.ZipFile, name: str) -> Member:
    """
    Raises:
        KeyError: there is no such array.
        ValueError: damaged.
    """
    info = archive.getinfo(f"{name}.npy")
    file = archive.open(info)
    header = array_header(file)
    check_size(header, info.file_size - file.tell(), most=None)
    return Member(header, file)


def read_members(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Arrays of an .npz that are small, those of `names` that it has.

    Raises:
        OSError: there is no such file.
        ValueError: damaged, or larger than it may be.
    """
    found = {}
    with open_archive(path) as archive:
        there = set(archive.namelist())
        for name in names:
            if f"{name}.npy" in there:
                header, file = open_member(archive, name)
                if header.bytes > MOST_ARRAY:
                    raise ValueError(f"{name} has {header.bytes:,} bytes")
                content = file.read()
                if len(content) != header.bytes:
                    raise ValueError(f"{name} is cut off")
                order = "F" if header.in_columns else "C"
                values = np.frombuffer(bytearray(content), header.dtype)
                found[name] = values.reshape(header.shape, order=order)
    return found
