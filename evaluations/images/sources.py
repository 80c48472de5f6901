"""Images to be looked at: an .npz as ADM writes it, a folder, or a data set of `domains`."""

import hashlib
import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

import domains
from domains.codecs import PIXELS
from domains.decoding import Unreadable, opened
from domains.domain import fingerprint_of
from domains.sources import image_files, is_saved
from runtime.errors import InputError, LocalError
from runtime.files import sha256_of
from runtime.random import generator
from runtime.untrusted import (
    MOST_SAMPLE,
    Member,
    is_archive,
    open_archive,
    open_member,
    read_members,
)

# What numpy and zipfile raise on files that are damaged, or no .npz.
DAMAGED = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError,
    MemoryError, OverflowError, SyntaxError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


class Block(NamedTuple):
    # uint8 (b, C, H, W); clips, uint8 (b, C, T, H, W); sounds, int16 (b, channels, samples)
    raw: Tensor
    y: Tensor | None  # int64 (b,), the classes where they are known


class Images(Protocol):
    """Images, clips or sounds of one shape, read in order and never held all at once."""

    name: str  # what a person calls them
    shape: tuple[int, ...]  # (C, H, W), (C, T, H, W) or (channels, samples)
    frame_stride: int | None  # of clips, frames from one to the next; None: unknown, or no clips
    rate: int | None  # of sounds, samples per second; None: unknown, or no sounds

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """SHA-256 of what tells these images from others.

        Raises:
            InputError: damaged.
        """

    def blocks(self, numbers: range, size: int) -> Iterator[Block]:
        """The images of consecutive numbers, `size` at a time.

        Raises:
            InputError: damaged.
        """


# Images of an .npz -> their classes, int (N,), where they are there. What training never saw is in
# references of `make-reference` alone.
LABELS = {"arr_0": "arr_1", "held_out": "held_out_labels"}
# Sounds and clips of such references -> the features that an extractor saw in them, float (N, D).
FEATURES = {"arr_0": "pool", "held_out": "held_out_pool"}
# How many windows of a sound mu and sigma are of, where that is more than one: pool has the first.
WINDOWS = "windows"


class NpzImages:
    """An array of images of an .npz, uint8 (N, H, W, C), and their classes.

    Read as it is needed, for 50,000 images of 256 pixels are 10 GB. Nothing is unpickled. Labels
    that are no classes are passed over, as ADM's evaluator does with all; `strange` says what they
    are. Where features are stored (`pool`), they are of all N, and `blocks` ends after the few
    that the file holds beside them.

    Raises:
        InputError: no such file, damaged, or another kind of arrays.
    """

    rate = None

    def __init__(self, path: str | Path, array: str = "arr_0") -> None:
        self.path, self.array, self.name = Path(path), array, str(path)
        try:
            self.names = names_in(self.path)
            if array not in self.names:
                there = ", ".join(self.names) or "nothing"
                raise InputError(f"{path} has no array {array} (the images), but {there}")
            shape, in_columns, dtype = self.opened().header
            found = read_arrays(self.path, ["frame_stride", FEATURES[array]])
        except InputError:
            raise
        except DAMAGED as error:
            raise unreadable(self.path, error) from error
        is_image = dtype == np.uint8 and len(shape) in (4, 5) and shape[-1] in (1, 3)
        is_sound = dtype == np.int16 and len(shape) == 3 and shape[-1] in (1, 2)
        if in_columns or not (is_image or is_sound):
            order = " in Fortran order" if in_columns else ""
            raise InputError(
                f"{path}: {array} is {dtype} {shape}{order}, not uint8 (N, height, width, 1 or 3 "
                "channels), clips (N, frames, height, width, 1 or 3), nor int16 (N, samples, 1 or "
                "2 channels)"
            )
        if min(shape) < 1 or math.prod(shape[1:]) * dtype.itemsize > MOST_SAMPLE:
            raise InputError(f"{path}: {array} has the shape {shape}")
        self.held, *axes, channels = shape
        self.dtype, self.shape = dtype, (channels, *axes)
        self.pool = features_of(self.path, found, FEATURES[array])
        self.count = self.held if self.pool is None else len(self.pool)
        self.labels, self.strange = self.classes()
        stride = found.get("frame_stride")
        if stride is not None and (stride.shape != () or stride.dtype.kind != "i" or stride < 1):
            raise InputError(f"{path}: frame_stride is {stride!r}, not a number of frames")
        self.frame_stride = None if stride is None else int(stride)

    def __len__(self) -> int:
        return self.count

    def blocks(self, numbers: range, size: int) -> Iterator[Block]:
        channels, *axes = self.shape
        row = math.prod(self.shape) * self.dtype.itemsize
        try:
            with self.opened().file as file:
                file.seek(file.tell() + numbers.start * row)
                last = min(numbers.stop, self.held)
                for first in range(numbers.start, last, size):
                    stop = min(first + size, last)
                    content = file.read((stop - first) * row)
                    if len(content) < (stop - first) * row:
                        raise EOFError(f"it ends before image {stop}")
                    raw = np.frombuffer(content, self.dtype).reshape(-1, *axes, channels)
                    y = None if self.labels is None else self.labels[first:stop]
                    yield Block(torch.from_numpy(np.moveaxis(raw, -1, 1).copy()), y)
        except DAMAGED as error:
            raise unreadable(self.path, error) from error

    def fingerprint(self) -> str:
        """Of the file, whose own checksums are compared too: `blocks` may not come to its end."""
        try:
            with open_archive(self.path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"bad CRC-32 for {damaged}")
        except DAMAGED as error:
            raise unreadable(self.path, error) from error
        return sha256_of(self.path)

    def opened(self) -> Member:
        return open_member(open_archive(self.path), self.array)

    def classes(self) -> tuple[Tensor | None, str | None]:
        """Class ids (N,), and what a person is told of labels that are none."""
        name = LABELS[self.array]
        try:
            labels = read_members(self.path, [name]).get(name)
        except DAMAGED as error:
            return None, f"{self.path}: {name} cannot be read ({reason_of(error)})"
        if labels is None:
            return None, None
        if labels.shape == (self.count,) and labels.dtype.kind in "iu":
            return torch.from_numpy(labels.astype(np.int64)), None
        if labels.ndim == 2 and len(labels) == self.count and labels.dtype.kind in "biuf":
            return single_labels(torch.from_numpy(labels.astype(np.float32))), None
        return None, (
            f"{self.path}: {name} is {labels.dtype} {labels.shape}, not a class id for each of "
            f"{self.count} images"
        )


def features_of(path: Path, found: dict[str, np.ndarray], name: str) -> Tensor | None:
    """float32 (N, D); None: the file has none.

    Raises:
        InputError: they are something else.
    """
    if name not in found:
        return None
    pool = found[name]
    if pool.ndim != 2 or pool.dtype.kind != "f" or not (pool.size and np.isfinite(pool).all()):
        raise InputError(f"{path}: {name} is {pool.dtype} {pool.shape}, not finite features (N, D)")
    return torch.from_numpy(pool.astype(np.float32))


def names_in(path: Path) -> list[str]:
    """The arrays of an .npz."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; sample_ddp.py writes samples")
    if not is_archive(path):
        raise InputError(f"{path} is no .npz file, or only the beginning of one")
    try:
        with open_archive(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGED as error:
        raise unreadable(path, error) from error


def read_arrays(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Small arrays of an .npz, those of `names` that it has.

    Raises:
        InputError: it is damaged, or they hold objects.
    """
    try:
        return read_members(path, names)
    except DAMAGED as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is no readable .npz file ({reason_of(error)})")


def reason_of(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__


class DataSetImages:
    """The images of a data set, in its order or in one of `numbers`."""

    def __init__(
        self, name: str, domain: domains.Domain, image_set: domains.DataSet,
        numbers: np.ndarray | None = None, workers: int = 0,
    ) -> None:  # fmt: skip
        self.name, self.domain, self.image_set = name, domain, image_set
        self.workers = workers if image_set.decodes else 0
        self.numbers = np.arange(len(image_set)) if numbers is None else numbers
        self.shape, self.frame_stride = domain.raw_shape, domain.frame_stride
        self.rate = domain.rate

    def __len__(self) -> int:
        return len(self.numbers)

    def fingerprint(self) -> str:
        said = (fingerprint_of(self.image_set), self.shape, self.numbers.tolist())
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def blocks(self, numbers: range, size: int) -> Iterator[Block]:
        batches = [
            domains.Draws.plain(self.numbers[first : min(first + size, numbers.stop)])
            for first in range(numbers.start, numbers.stop, size)
        ]
        for batch in domains.loader_of(self.image_set, batches, self.workers):
            if batch.error is not None:
                # The flag that it ends with is not one of these commands.
                raise LocalError(batch.error.partition("; --skip-corrupt")[0])
            raw, y = batch[:2]
            if self.domain.multi_label:
                y = single_labels(y)
            yield Block(raw, y if self.domain.num_classes else None)


def classes_of_all(labels: Sequence[Tensor | None]) -> Tensor | None:
    """Of consecutive blocks together; None where one has none."""
    known = [y for y in labels if y is not None]
    return torch.cat(known) if known and len(known) == len(labels) else None


def single_labels(y: Tensor) -> Tensor | None:
    """Class ids (N,) of multi-hot labels (N, K); None where some have none or several."""
    return y.argmax(1) if bool((y.sum(1) == 1).all()) else None


def side_of_first(folder: Path) -> int:
    """The shorter side of the first image below a folder.

    Raises:
        InputError: there is none.
    """
    first = next(image_files(folder), None)
    if first is None:
        raise InputError(f"{folder} has no images")
    try:
        with opened(first, first) as image:
            return min(image.size)
    except Unreadable as error:
        raise InputError(str(error)) from error


def size_of(shape: tuple[int, ...]) -> int | tuple[int, int] | None:
    """What --image-size would say of samples; of clips that are no squares, height and width."""
    if not shape:
        return None
    oblong = len(shape) == 4 and shape[2] != shape[3]
    return shape[2:] if oblong else shape[-1]


class Real(NamedTuple):
    """Real images, and those of them that no model has seen; None where there are none."""

    images: Images
    held_out: Images | None
    warning: str | None = None  # what makes scores beside them hard to compare


def open_images(
    asked: str, *, image_size: int | tuple[int, int] | None = None, data_path: str | None = None,
    cache_dir: str | None = None, workers: int = 0, num_frames: int | None = None,
    frame_stride: int | None = None, held_out: int | None = None,
) -> Real:  # fmt: skip
    """An .npz, a folder of images, or a data set by its --dataset_name.

    Args:
        image_size: what a folder's images are cropped to, as ADM does; of clips also height and
            width; None: the first one's size.
        workers: processes that decode.
        num_frames, frame_stride: of clips of a data set of videos.
        held_out: at most so many of a data set's held-out part alone, which then sets no floor.

    Raises:
        InputError: there is no such thing.
    """
    path = Path(asked)
    if path.suffix == ".npz" or path.is_file():
        if held_out is not None:
            raise InputError(f"--held-out: {asked} is a file; name a data set")
        images = NpzImages(path)
        return Real(images, NpzImages(path, "held_out") if "held_out" in images.names else None)
    where = dict(data_path=data_path)
    name = asked
    if path.is_dir() and not is_saved(asked):
        name, where = "folder", dict(data_path=asked, num_classes=0)
        image_size = image_size or side_of_first(path)
    domain = domains.build(
        name, image_size=image_size, vae=PIXELS, cache_dir=cache_dir, num_frames=num_frames,
        frame_stride=frame_stride, **where,
    )  # fmt: skip
    if held_out is not None:
        return Real(held_out_of(asked, domain, workers=workers, most=held_out), None)
    warning = None
    if domain.held_out_labels:
        warning = (
            f"{asked} is its training part, and samples have the labels of held-out data: "
            "--held-out takes those"
        )
    return real_of(asked, domain, workers=workers)._replace(warning=warning)


def real_of(name: str, domain: domains.Domain, *, workers: int) -> Real:
    """What a domain trains on, and what it holds out, if anything."""
    images = training_of(name, domain, workers=workers)
    try:
        return Real(images, held_out_of(name, domain, workers=workers))
    except domains.NoHeldOut:
        return Real(images, None)


def training_of(
    name: str, domain: domains.Domain, *, workers: int, most: int | None = None
) -> DataSetImages:
    """
    Args:
        most: of more images, a random choice.

    Raises:
        InputError: it has latents and no images.
    """
    if domain.stored_in:
        raise InputError(
            f"{domain.stored_in} holds latents: give --score-reference REF.npz, which "
            "python -m evaluations.images make-reference writes, and --score-extractor inception "
            "or classifier:FILE"
        )
    image_set, numbers = domain.train_set(augment=False), None
    if most is not None and len(image_set) > most:
        order = torch.randperm(len(image_set), generator=generator("cpu", "real images"))
        numbers = order[:most].sort().values.numpy()
    return DataSetImages(name, domain, image_set, numbers, workers=workers)


def held_out_of(
    name: str, domain: domains.Domain, *, workers: int, most: int | None = None
) -> DataSetImages:
    """
    Raises:
        NoHeldOut: the data have no such part.
    """
    held_out = domain.held_out_set()
    # In a random order: a data set may lie sorted by class, and a part of it is used.
    order = domains.held_out_order(len(held_out))[:most].numpy()
    name = f"{name}, held out"
    return DataSetImages(name, domain, held_out, order, workers=workers)
