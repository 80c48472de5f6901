"""The latent stores that encode.py writes: memory-mapped shards, and a manifest.

    STORE/manifest.json                          what was encoded and how; sizes and checksums
    STORE/moments-00003-of-00079.safetensors     one of the shards, all but the last of one size
        its arrays                               what they are, its kind says
        "shard" in its header                    its own name, the manifest's "encoding", a checksum

The kinds are in image_store.py, track_store.py, frame_store.py and clip_store.py.
"""

import dataclasses
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from runtime import files
from runtime.errors import InputError, LocalError
from runtime.files import discard_rests, retried, write_patiently
from runtime.untrusted import json_of, parsed

from .codecs import PIXELS, first_difference, hub_id, is_path, short_name
from .latents import Load

MANIFEST = "manifest.json"
AGAIN = "delete it, and run encode.py again with the same flags"

Facts = dict[str, Any]  # what is known of a shard once it is encoded, as plain data
Kinds = dict[str, Callable[[Any], Any]]  # name -> how its value is made of JSON
Arrays = dict[str, tuple[str, tuple[int, ...]]]  # name -> safetensors' type, shape


class Shard(NamedTuple):
    """The samples from `start` to `stop`, and the file that holds their latents."""

    file: str
    start: int
    stop: int


class Content(NamedTuple):
    """What a shard holds."""

    arrays: dict[str, Tensor]  # in the order of Encoding.arrays
    facts: Facts


class Encoding(ABC):
    """All that decides what the shards hold, as plain data: a frozen dataclass for each kind."""

    format: ClassVar[str]  # its number changes when older readers would misread a store
    prefix: ClassVar[str]  # of the files of shards
    unit: ClassVar[str]  # what is encoded: image
    fields: ClassVar[Kinds]
    facts: ClassVar[Kinds]

    codec: dict[str, Any]  # the VAE's name, scale, shift and sha256 of its weights
    dataset_name: str
    count: int  # samples
    shard_size: int  # samples
    data_set: str  # a fingerprint of the samples

    @abstractmethod
    def check(self) -> None:
        """
        Raises:
            ValueError: this version writes no such thing.
        """

    @abstractmethod
    def arrays(self, shard: Shard, facts: Facts) -> Arrays:
        """What a shard with these facts has to hold."""

    def totals(self, facts: Sequence[Facts]) -> dict[str, Any]:
        """What the manifest says of all shards together."""
        return {}

    def remarks(self, totals: dict[str, Any]) -> list[str]:
        """Lines about the totals for whoever has encoded."""
        return []

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Encoding":
        """From JSON.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        encoding = cls(**{name: kind(plain[name]) for name, kind in cls.fields.items()})
        if min(encoding.count, encoding.shard_size) < 1:
            raise ValueError("sizes and counts are 1 or more")
        encoding.check()
        return encoding

    @classmethod
    def facts_of(cls, plain: dict[str, Any]) -> Facts:
        return {name: kind(plain[name]) for name, kind in cls.facts.items()}

    @property
    def shards(self) -> list[Shard]:
        stops = [*range(0, self.count, self.shard_size), self.count]
        total = len(stops) - 1
        return [
            Shard(f"{self.prefix}-{number:05d}-of-{total:05d}.safetensors", start, stop)
            for number, (start, stop) in enumerate(pairwise(stops))
        ]

    def differs(self, other: "Encoding") -> str | None:
        """The first thing that makes other latents; the VAE's name does not, its weights do."""
        ours, theirs = (
            dataclasses.asdict(e) | {"codec": {k: v for k, v in e.codec.items() if k != "name"}}
            for e in (self, other)
        )
        return next((name for name, value in ours.items() if theirs[name] != value), None)


def strings(plain: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(part) for part in plain)


def shape_of(plain: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(size) for size in plain)


def codec_of(plain: dict[str, Any]) -> dict[str, Any]:
    scale, shift = float(plain["scale"]), float(plain["shift"])
    if not math.isfinite(scale) or not math.isfinite(shift) or not scale:
        raise ValueError(f"scale {scale} and shift {shift} of a VAE")
    sha256 = str(plain["sha256"])
    return {"name": str(plain["name"]), "scale": scale, "shift": shift, "sha256": sha256}


# Writing


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Around everything that writes to a store.

    Raises:
        LocalError: another process writes to it now.
        InputError: its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, f"--out {folder}", waits=False) as alone:
        if not alone:
            raise LocalError(f"{folder}: another encode.py is writing there: wait until it ends")
        yield


def write_shard(folder: Path, encoding: Encoding, shard: Shard, content: Content) -> None:
    """A shard under its name, complete or not at all."""
    from safetensors.torch import save

    arrays, facts = content
    expected = encoding.arrays(shard, facts)
    assert {name: tuple(array.shape) for name, array in arrays.items()} == {
        name: shape for name, (_, shape) in expected.items()
    }
    own = {
        "file": shard.file, "encoding": dataclasses.asdict(encoding), **facts,
        "sha256": checksum(arrays, expected),  # not of what the disk gives back
    }  # fmt: skip
    # One entry only: safetensors writes several in any order, and equal shards would not be equal.
    written = save(arrays, {"shard": json.dumps(own)})
    write_patiently(folder / shard.file, lambda file: file.write(written))


def checksum(arrays: dict[str, Tensor], names: Arrays) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(arrays[name].numpy())
    return digest.hexdigest()


def missing_shards(folder: Path, encoding: Encoding) -> list[Shard]:
    """What is left to encode, and no rests of files whose writing was interrupted.

    Raises:
        InputError: the folder has shards of another encoding, or damaged ones.
    """
    folder.mkdir(parents=True, exist_ok=True)  # refused now rather than after the first shard
    for names in (f"{encoding.prefix}*", MANIFEST):
        discard_rests(folder, names)
    expected = {shard.file: shard for shard in encoding.shards}
    present = sorted(path.name for path in folder.glob("*.safetensors"))
    for name in present:
        if not name.startswith(encoding.prefix):
            raise InputError(
                f"{folder / name} holds no latents of {encoding.unit}s: give another --out"
            )
        header = read_header(folder / name, type(encoding))
        changed = encoding.differs(header.encoding)
        if changed or name not in expected:
            raise InputError(
                f"{folder / name} was encoded with another {changed or 'number of shards'}: "
                "give another --out, or the flags of then"
            )
        header.check(expected[name], encoding)
    return [shard for name, shard in expected.items() if name not in present]


def write_manifest(folder: Path, encoding: Encoding) -> dict[str, Any]:
    """Last of all: a folder with a manifest is complete. One that is right is left alone.

    Its checksums are those that the shards were written with, so a shard that has changed since
    stays found out.

    Returns:
        What it says.

    Raises:
        InputError: shards are missing, damaged, or of another encoding.
    """
    shards, facts = [], []
    for shard in encoding.shards:
        path = folder / shard.file
        header = read_header(path, type(encoding))
        if changed := encoding.differs(header.encoding):
            raise InputError(f"{path} was encoded with another {changed} than the others: {AGAIN}")
        header.check(shard, encoding)
        own = {"sha256": header.sha256, **header.facts}
        shards.append({"file": shard.file, "bytes": path.stat().st_size} | own)
        facts.append(header.facts)
    content = {
        "format": encoding.format, "encoding": dataclasses.asdict(encoding),
        **encoding.totals(facts), "shards": shards,
    }  # fmt: skip
    text = json.dumps(content, indent=1).encode()
    path = folder / MANIFEST
    if not (path.is_file() and path.read_bytes() == text):
        write_patiently(path, lambda file: file.write(text))
    return content


# Reading


class Header(NamedTuple):
    """What a shard says of itself."""

    path: Path
    file: str  # its name when it was written
    encoding: Encoding
    sha256: str  # `checksum` of its arrays when they were written
    facts: Facts
    arrays: Arrays

    def check(self, shard: Shard, encoding: Encoding) -> None:
        expected = encoding.arrays(shard, self.facts)
        if (self.file, self.arrays) != (shard.file, expected):
            raise InputError(
                f"{self.path} is {self.file} with {self.arrays}, not {shard.file} with {expected}: "
                f"{AGAIN}"
            )


def read_header(path: Path, kind: type[Encoding]) -> Header:
    """
    Raises:
        InputError: truncated, or no shard of this kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with retried(lambda: safe_open(path, framework="np"), path) as file:
            own = parsed((file.metadata() or {})["shard"])
            encoding, name = kind.of(own["encoding"]), str(own["file"])
            sha256, facts = str(own["sha256"]), kind.facts_of(own)
            views = {key: file.get_slice(key) for key in file.keys()}
            arrays = {k: (v.get_dtype(), tuple(v.get_shape())) for k, v in views.items()}
    except (
        SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError,
    ) as error:  # fmt: skip
        raise InputError(f"{path} is truncated or no shard of latents ({error}): {AGAIN}") from None
    return Header(path, name, encoding, sha256, facts, arrays)


class Entry(NamedTuple):
    """What the manifest says of a shard."""

    bytes: int
    sha256: str
    facts: Facts


class Manifest:
    """manifest.json of a store of one of some kinds.

    Raises:
        InputError: the store is not finished, or the file is none of ours.
    """

    def __init__(self, folder: Path, *kinds: type[Encoding]) -> None:
        self.folder, path = folder, folder / MANIFEST
        if not path.is_file():
            unfinished = f"{folder} is not finished: run encode.py again with the same flags"
            raise InputError(
                unfinished if folder.is_dir() else f"{folder}: there is no such folder"
            )
        try:
            content = json_of(path)
            kind = next((kind for kind in kinds if content["format"] == kind.format), None)
            if kind is None:
                known = " or ".join(repr(kind.format) for kind in kinds)
                raise ValueError(f"its format is {content['format']!r}, not {known}")
            self.encoding = kind.of(content["encoding"])
            self.files = {
                str(entry["file"]):
                Entry(int(entry["bytes"]), str(entry["sha256"]), kind.facts_of(entry))
                for entry in content["shards"]
            }  # fmt: skip
            number = math.ceil(self.encoding.count / self.encoding.shard_size)
            if number != len(self.files) or list(self.files) != [
                shard.file for shard in self.encoding.shards
            ]:
                raise ValueError("its shards do not fit its counts")
        except (
            OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError,
        ) as error:  # fmt: skip
            raise InputError(
                f"{path} is no manifest of latents ({error}): run encode.py again with the same "
                "flags, and it is mended"
            ) from None

    def check(self, shard: Shard) -> Path:
        """The path of a shard that has the size, encoding and shapes of the manifest."""
        path, entry = self.folder / shard.file, self.files[shard.file]
        if not path.is_file():
            raise InputError(f"{path} is missing: run encode.py again with the same flags")
        if path.stat().st_size != entry.bytes:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes, but {MANIFEST} says {entry.bytes}: "
                f"{AGAIN}"
            )
        header = read_header(path, type(self.encoding))
        if changed := self.encoding.differs(header.encoding):
            raise InputError(f"{path} and {MANIFEST} beside it disagree about the {changed}")
        header.check(shard, self.encoding)
        if (header.sha256, header.facts) != (entry.sha256, entry.facts):
            raise InputError(
                f"{path} and {MANIFEST} beside it disagree about its content: run encode.py again "
                "with the same flags"
            )
        return path

    @cached_property
    def shards(self) -> list[dict[str, np.ndarray]]:
        """The arrays of every shard, mapped; nothing is read yet."""
        from safetensors.torch import load_file  # maps the file, unlike safetensors.numpy's

        paths = [self.check(shard) for shard in self.encoding.shards]
        mapped = [retried(partial(load_file, path), path) for path in paths]
        return [{n: tensor.numpy() for n, tensor in shard.items()} for shard in mapped]

    def is_intact(self, shard: Shard) -> bool:
        """Every bit of a shard's arrays against the checksum that they were written with."""
        from safetensors.torch import load_file

        entry = self.files[shard.file]
        names = self.encoding.arrays(shard, entry.facts)
        return checksum(load_file(self.check(shard)), names) == entry.sha256


def has_shards(folder: Path, kind: type[Encoding]) -> bool:
    """Did encode.py write latents of this kind here, if only the first shard?"""
    return any(folder.glob(f"{kind.prefix}-*.safetensors"))


def decoding_vae(
    identity: dict[str, Any], called: str, asked: str | None, cache_dir: str | None, load: Load
) -> str:
    """The --vae that decodes the latents of a store, by the identity of the VAE that made them.

    Raises:
        InputError: the one that was asked for is another.
    """
    stored = short_name(identity["name"])
    # What the hub has under a name stays; what is in a folder may have been replaced.
    if asked is None or hub_id(asked) == identity["name"] and not is_path(asked):
        return stored
    if asked == PIXELS:
        raise InputError(f"--vae {PIXELS}, but {called} holds latents")
    if key := first_difference(identity, load(asked, cache_dir).identity):
        raise InputError(
            f"--vae {asked} has another {key} than {stored}, which made the latents of "
            f"{called}: leave out --vae"
        )
    return asked


def gather(arrays: list[np.ndarray], number: np.ndarray, *where: np.ndarray) -> np.ndarray:
    """arrays[number[i]][where[0][i], where[1][i], ...] for every i.

    Row by row: picking the rows of one array at a time would copy each of them twice, and a batch
    has few rows of any one.
    """
    out = np.empty((len(number), *arrays[0].shape[len(where) :]), arrays[0].dtype)
    rows = zip(number.tolist(), *(axis.tolist() for axis in where), strict=True)
    for position, (array, *row) in enumerate(rows):
        out[position] = arrays[array][tuple(row)]
    return out
