"""The latent store that encode.py writes: memory-mapped shards of VAE moments, and a manifest.

    STORE/manifest.json                          what was encoded and how; sizes and checksums
    STORE/moments-00003-of-00079.safetensors     one of the shards, all but the last of one size
        moments  float16 (n, 2, 2C, h, w)        [:, 0] of the images, [:, 1] of their mirror images
        labels   int64 (n,)                      classes, zeros where there are none
        "shard" in its header                    its own name, the manifest's "encoding", a checksum

Moments are mean beside standard deviation, without scale and shift. The deviation and not its
logarithm, because rounding the logarithm is a relative error of the deviation itself. float16 and
not bfloat16: a mean of 10 is kept to 0.004 instead of 0.03, and an SD deviation is often smaller
than that. The mirror image is encoded on its own: a VAE does not commute with the flip, so the
mirrored latent is not the latent of the mirrored image.
"""

import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from runtime.errors import InputError, LocalError
from runtime.files import atomic_write

from .codecs import PIXELS, VAECodec, difference, hub_id, is_path, short_name
from .latents import StoredCodec

FORMAT = "layersync latents 1"  # the number changes when older readers would misread a store
MANIFEST = "manifest.json"
CROP = "ADM center crop"  # decoding.center_crop
FLIPS = 2


class Shard(NamedTuple):
    """The images from `start` to `stop`, and the file that holds their moments."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class Encoding:
    """All that decides what the shards hold, as plain data."""

    codec: dict[str, Any]  # the VAE's name, scale, shift and sha256 of its weights
    dataset_name: str
    count: int  # images
    num_classes: int  # 0: the labels are zeros
    image_size: int
    latent_shape: tuple[int, ...]  # (C, h, w)
    shard_size: int  # images
    data_set: str  # Source.fingerprint of the images
    crop: str = CROP
    flips: int = FLIPS

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Encoding":
        """From JSON.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        given = {name: kind(plain[name]) for name, kind in KINDS.items()}
        if given["crop"] != CROP or given["flips"] != FLIPS or len(given["latent_shape"]) != 3:
            raise ValueError("another crop, number of flips or shape than this version writes")
        if min(given["count"], given["shard_size"], *given["latent_shape"]) < 1:
            raise ValueError("sizes and counts are 1 or more")
        return cls(**given)

    @property
    def moments_shape(self) -> tuple[int, ...]:
        channels, *axes = self.latent_shape
        return (FLIPS, 2 * channels, *axes)

    @property
    def shards(self) -> list[Shard]:
        stops = [*range(0, self.count, self.shard_size), self.count]
        total = len(stops) - 1
        return [
            Shard(f"moments-{number:05d}-of-{total:05d}.safetensors", start, stop)
            for number, (start, stop) in enumerate(pairwise(stops))
        ]

    def differs(self, other: "Encoding") -> str | None:
        """The first thing that makes other moments; the VAE's name does not, its weights do."""
        ours, theirs = (
            dataclasses.asdict(e) | {"codec": {k: v for k, v in e.codec.items() if k != "name"}}
            for e in (self, other)
        )
        return next((name for name, value in ours.items() if theirs[name] != value), None)


def codec_of(plain: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": str(plain["name"]), "scale": float(plain["scale"]),
        "shift": float(plain["shift"]), "sha256": str(plain["sha256"]),
    }  # fmt: skip


def shape_of(plain: list[int]) -> tuple[int, ...]:
    return tuple(int(size) for size in plain)


KINDS = dict(
    codec=codec_of, dataset_name=str, count=int, num_classes=int, image_size=int,
    latent_shape=shape_of, shard_size=int, data_set=str, crop=str, flips=int,
)  # fmt: skip


# Writing


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Around everything that writes to a store.

    Raises:
        LocalError: another process writes to it now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LocalError(
            f"{folder}: another encode.py is writing there: wait until it ends"
        ) from None
    finally:
        os.close(descriptor)


def write_shard(
    folder: Path, encoding: Encoding, shard: Shard, moments: Tensor, labels: Tensor, replaced: int
) -> None:
    """A shard under its name, complete or not at all.

    Args:
        moments: float16 (n, 2, 2C, h, w).
        labels: int64 (n,).
        replaced: unreadable images in whose place others were encoded.
    """
    from safetensors.torch import save

    assert moments.shape == (shard.stop - shard.start, *encoding.moments_shape)
    own = {
        "file": shard.file, "encoding": dataclasses.asdict(encoding), "replaced": replaced,
        "sha256": checksum(moments, labels),  # not of what the disk gives back
    }  # fmt: skip
    # One entry only: safetensors writes several in any order, and equal shards would not be equal.
    content = save({"moments": moments, "labels": labels}, {"shard": json.dumps(own)})
    with atomic_write(folder / shard.file) as file:
        file.write(content)


def checksum(moments: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256()
    for part in (moments, labels):
        digest.update(part.numpy())
    return digest.hexdigest()


def missing_shards(folder: Path, encoding: Encoding) -> list[Shard]:
    """What is left to encode, and no rests of files whose writing was interrupted.

    Raises:
        InputError: the folder has shards of another encoding, or damaged ones.
    """
    folder.mkdir(parents=True, exist_ok=True)  # refused now rather than after the first shard
    for rest in folder.glob(".m*.tmp"):
        rest.unlink()
    expected = {shard.file: shard for shard in encoding.shards}
    present = sorted(path.name for path in folder.glob("moments-*.safetensors"))
    for name in present:
        header = read_header(folder / name)
        changed = encoding.differs(header.encoding)
        if changed or name not in expected:
            raise InputError(
                f"{folder / name} was encoded with another {changed or 'number of shards'}: "
                "give another --out, or the flags of then"
            )
        header.check(expected[name], encoding)
    return [shard for name, shard in expected.items() if name not in present]


def write_manifest(folder: Path, encoding: Encoding) -> None:
    """Last of all: a folder with a manifest is complete. One that is right is left alone.

    Its checksums are those that the shards were written with, so a shard that has changed since
    stays found out.

    Raises:
        InputError: shards are missing, damaged, or of another encoding.
    """
    shards = []
    for shard in encoding.shards:
        path = folder / shard.file
        header = read_header(path)
        if changed := encoding.differs(header.encoding):
            raise InputError(f"{path} was encoded with another {changed} than the others: {AGAIN}")
        header.check(shard, encoding)
        own = {"sha256": header.sha256, "replaced": header.replaced}
        shards.append({"file": shard.file, "bytes": path.stat().st_size} | own)
    content = {"format": FORMAT, "encoding": dataclasses.asdict(encoding), "shards": shards}
    text = json.dumps(content, indent=1).encode()
    path = folder / MANIFEST
    if not (path.is_file() and path.read_bytes() == text):
        with atomic_write(path) as file:
            file.write(text)


# Reading


class Header(NamedTuple):
    """What a shard says of itself."""

    path: Path
    file: str  # its name when it was written
    encoding: Encoding
    sha256: str  # `checksum` of its arrays when they were written
    replaced: int  # unreadable images
    arrays: dict[str, tuple[str, tuple[int, ...]]]  # name -> type and shape

    def check(self, shard: Shard, encoding: Encoding) -> None:
        count = shard.stop - shard.start
        expected = {
            "moments": ("F16", (count, *encoding.moments_shape)), "labels": ("I64", (count,)),
        }  # fmt: skip
        if (self.file, self.arrays) != (shard.file, expected):
            raise InputError(
                f"{self.path} is {self.file} with {self.arrays}, not {shard.file} with {expected}: "
                f"{AGAIN}"
            )


AGAIN = "delete it, and run encode.py again with the same flags"


def read_header(path: Path) -> Header:
    """
    Raises:
        InputError: truncated, or no shard of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            own = json.loads((file.metadata() or {})["shard"])
            encoding, name = Encoding.of(own["encoding"]), str(own["file"])
            sha256, replaced = str(own["sha256"]), int(own["replaced"])
            views = {key: file.get_slice(key) for key in file.keys()}
            arrays = {k: (v.get_dtype(), tuple(v.get_shape())) for k, v in views.items()}
    except (
        SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError,
    ) as error:  # fmt: skip
        raise InputError(f"{path} is truncated or no shard of latents ({error}): {AGAIN}") from None
    return Header(path, name, encoding, sha256, replaced, arrays)


class Manifest:
    """manifest.json of a store.

    Raises:
        InputError: the store is not finished, or the file is none of ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / MANIFEST
        if not path.exists():
            unfinished = f"{folder} is not finished: run encode.py again with the same flags"
            raise InputError(
                unfinished if folder.is_dir() else f"{folder}: there is no such folder"
            )
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
            self.encoding = Encoding.of(content["encoding"])
            self.files = {
                str(entry["file"]): (int(entry["bytes"]), str(entry["sha256"]))
                for entry in content["shards"]
            }
            number = math.ceil(self.encoding.count / self.encoding.shard_size)
            if number != len(self.files) or list(self.files) != [
                shard.file for shard in self.encoding.shards
            ]:
                raise ValueError("its shards do not fit its counts")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{path} is no manifest of latents ({error}): run encode.py again with the same "
                "flags, and it is mended"
            ) from None

    def check(self, shard: Shard) -> Path:
        """The path of a shard that has the size, encoding and shapes of the manifest."""
        path, (size, _) = self.folder / shard.file, self.files[shard.file]
        if not path.is_file():
            raise InputError(f"{path} is missing: run encode.py again with the same flags")
        if path.stat().st_size != size:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes, but {MANIFEST} says {size}: {AGAIN}"
            )
        header = read_header(path)
        if changed := self.encoding.differs(header.encoding):
            raise InputError(f"{path} and {MANIFEST} beside it disagree about the {changed}")
        header.check(shard, self.encoding)
        if header.sha256 != self.files[shard.file][1]:
            raise InputError(
                f"{path} and {MANIFEST} beside it disagree about its checksum: run encode.py again "
                "with the same flags"
            )
        return path

    def is_intact(self, shard: Shard) -> bool:
        """Every bit of a shard's arrays against the checksum that they were written with."""
        from safetensors.torch import load_file

        return checksum(**load_file(self.check(shard))) == self.files[shard.file][1]


class MomentStore:
    """A finished store as a LatentSource."""

    decodes = False  # a gather from memory maps

    def __init__(self, data_path: str, image_size: int | None = None) -> None:
        self.called = f"--data-path {data_path}"
        self.manifest = Manifest(Path(data_path))
        encoding = self.manifest.encoding
        self.shape, self.image_size = encoding.latent_shape, encoding.image_size
        self.num_classes, self.shard_size = encoding.num_classes, encoding.shard_size
        self.identity = encoding.codec

    def __len__(self) -> int:
        return self.manifest.encoding.count

    @cached_property
    def shards(self) -> list[dict[str, np.ndarray]]:
        """ "moments" and "labels" of every shard, mapped; nothing is read yet."""
        from safetensors.torch import load_file  # maps the file, unlike safetensors.numpy's

        paths = [self.manifest.check(shard) for shard in self.manifest.encoding.shards]
        return [{n: tensor.numpy() for n, tensor in load_file(path).items()} for path in paths]

    @cached_property
    def labels(self) -> np.ndarray:
        labels = np.concatenate([shard["labels"] for shard in self.shards])
        if labels.min() < 0 or labels.max() >= max(self.num_classes, 1):
            raise InputError(
                f"{self.called} has class ids {labels.min()} to {labels.max()}, but its "
                f"{MANIFEST} says {self.num_classes} classes"
            )
        return labels

    @cached_property
    def moments(self) -> list[np.ndarray]:
        return [shard["moments"] for shard in self.shards]

    def gather(self, index: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shard, row = np.divmod(index, self.shard_size)
        return gather(self.moments, shard, row, flipped.astype(np.int64)), self.labels[index]

    def vae(self, asked: str | None, cache_dir: str | None) -> str:
        stored = short_name(self.identity["name"])
        # What the hub has under a name stays; what is in a folder may have been replaced.
        if asked is None or hub_id(asked) == self.identity["name"] and not is_path(asked):
            return stored
        if asked == PIXELS:
            raise InputError(f"--vae {PIXELS}, but {self.called} holds latents, no pixels")
        if key := difference(self.identity, VAECodec.load(asked, cache_dir).identity):
            raise InputError(
                f"--vae {asked} has another {key} than {stored}, which made the latents of "
                f"{self.called}: leave out --vae"
            )
        return asked

    def codec(self, vae: str, cache_dir: str | None) -> StoredCodec:
        return StoredCodec(self.identity, vae, cache_dir)


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


def is_store(folder: Path) -> bool:
    """Did encode.py write here, if only the first shard?"""
    return (folder / MANIFEST).is_file() or any(folder.glob("moments-*.safetensors"))
