"""Where images come from: arrays, IDX files, folders, Hugging Face data sets.

A source reads one image by its number, as uint8 (C, H, W), with its class; see `Source`."""

import gzip
import hashlib
import importlib.util
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from runtime.errors import InputError
from runtime.hub import hub_answers

from .decoding import Unreadable, decode

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
MOST_IDX = 2**28  # bytes of an IDX file: Fashion-MNIST has 47 million
PARTS = ("train", "val")  # of a folder that has a held-out one
UNKNOWN_SPLIT = "Unknown split"  # how `datasets` says that there is none of that name
HUB_NAMES = {"imagenet-1k": "ILSVRC/imagenet-1k"}

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


class NoHeldOut(InputError):
    """The data have no part that training never sees."""


class Source(Protocol):
    class_names: tuple[str, ...] | None  # None where the data do not say
    decodes: bool  # reading costs enough to be worth worker processes

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Image `index` as uint8 (C, H, W) and its class; raises `Unreadable`."""

    def place(self, index: int) -> str:
        """What a person would call image `index`: its file, or its number."""

    def fingerprint(self) -> str:
        """SHA-256 of what tells data apart without decoding them: names, sizes, classes."""


@dataclass(frozen=True)
class Where:
    """What to open, in the words of the flags."""

    dataset_name: str
    data_path: str | None
    image_size: int
    labeled: bool  # False: unconditional, classes are neither needed nor looked at
    cache_dir: str | None = None
    held_out: bool = False


class ArraySource:
    """Images that fit in memory: uint8 (N, C, H, W) and their classes (N,)."""

    decodes = False

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, class_names) -> None:
        assert images.dtype == np.uint8 and images.ndim == 4 and len(images) == len(labels)
        self.name, self.images, self.labels, self.class_names = name, images, labels, class_names

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def place(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def fingerprint(self) -> str:
        return sha256_over(np.ascontiguousarray(self.images), self.labels)


def digits(where: Where) -> ArraySource:
    """The 1,797 grey 8x8 digits inside scikit-learn: 1,297 to train on, 500 held out."""
    table = digits_table()
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    order = np.random.RandomState(0).permutation(len(images))  # a stream numpy keeps for good
    chosen = order[1297:] if where.held_out else order[:1297]
    return ArraySource("digits", images[chosen], labels[chosen], DIGITS)


def digits_table() -> np.ndarray:
    """scikit-learn's file of the digits, float64 (1797, 65): pixels of 0 to 16, then the class.

    Read where it lies: importing scikit-learn costs every process more than a second.

    Raises:
        InputError: scikit-learn is not installed.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise InputError("--dataset_name digits needs scikit-learn, which has the images")
    return np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")


def fashion_mnist(where: Where) -> ArraySource:
    """60,000 grey 28x28 pictures of clothes padded to 32x32; t10k's 10,000 are held out."""
    folder = Path(where.data_path or FASHION_FOLDER)
    part = "t10k" if where.held_out else "train"
    images_file = idx_file(folder, f"{part}-images-idx3-ubyte")
    images = read_idx(images_file, axes=3)
    labels = read_idx(idx_file(folder, f"{part}-labels-idx1-ubyte"), axes=1)
    if images.shape[1:] != (28, 28):
        raise InputError(f"{images_file} holds images of {images.shape[1:]} pixels, not 28x28")
    if len(images) != len(labels) or len(images) == 0:
        raise InputError(f"{folder}: {len(images)} {part} images but {len(labels)} labels")
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None]
    return ArraySource("fashion-mnist", images, labels, FASHION)


def idx_file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise InputError(
        f"no {name}.gz or {name} in {folder}: install Debian's package dataset-fashion-mnist, "
        "or name the folder of the IDX files with --data-path"
    )


def read_idx(path: Path, axes: int) -> np.ndarray:
    """A uint8 array of `axes` axes from an IDX file: magic 00 00 08 axes, sizes, then the bytes."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            magic, *sizes = struct.unpack(f">{1 + axes}I", file.read(4 * (1 + axes)))
            expected = math.prod(sizes)
            if magic != 0x0800 + axes:
                raise InputError(
                    f"{path} is no IDX file of unsigned bytes with {axes} axes: "
                    f"it starts with {magic:#010x}, not {0x0800 + axes:#010x}"
                )
            content = file.read(min(expected, MOST_IDX) + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{path} cannot be read as an IDX file: {error}") from error
    if len(content) != expected:
        count = f"more than {expected}" if len(content) > expected else len(content)
        raise InputError(f"{path} holds {count} bytes of data, but its header promises {expected}")
    return np.frombuffer(content, np.uint8).reshape(sizes)


class FileSource:
    """Image files and their classes."""

    decodes = True

    def __init__(
        self, root: Path, image_size: int, class_names: tuple[str, ...] | None,
        files: Sequence[str], labels: Sequence[int],
    ) -> None:  # fmt: skip
        self.root, self.image_size, self.class_names = root, image_size, class_names
        # One block of bytes: a list of a million strings would be copied into every worker,
        # because counting references writes to it.
        self.files = np.array([os.fsencode(file) for file in files])
        self.labels = np.array(labels)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        place = self.place(index)
        return decode(place, place, self.image_size), int(self.labels[index])

    def place(self, index: int) -> str:
        return os.fsdecode(self.files[index].item())

    def fingerprint(self) -> str:
        """Of names below the root and sizes: here classes are folders, part of the names."""
        names = (os.path.relpath(file, os.fsencode(self.root)) for file in self.files.tolist())
        sizes = np.array([os.stat(file).st_size for file in self.files.tolist()])
        return sha256_over(b"\n".join(names), sizes)


class FolderSource(FileSource):
    """A folder of images: a class per subfolder, in sorted order (torchvision's ImageFolder).

    Without classes every image below the folder counts, whatever the layout.
    """

    def __init__(self, where: Where) -> None:
        root = given_folder(where)
        class_names, folders = None, [""]
        if where.labeled:
            folders = subfolders(root)
            class_names = tuple(folders)
        files, labels = [], []
        for label, folder in enumerate(folders):
            found = list(image_files(root / folder))
            if where.labeled and not found:
                raise InputError(f"--data-path {root}: class folder {folder!r} has no image")
            files += found
            labels += [label] * len(found)
        if not files:
            raise InputError(nothing_found(root, labeled=where.labeled))
        super().__init__(root, where.image_size, class_names, files, labels)


def subfolders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir())


def given_folder(where: Where) -> Path:
    """--data-path of data that cannot do without."""
    if where.data_path is None:
        raise InputError(f"--dataset_name {where.dataset_name} needs --data-path FOLDER")
    root = Path(where.data_path)
    if not root.is_dir():
        raise InputError(f"--data-path {root}: there is no such folder")
    return root


def nothing_found(root: Path, *, labeled: bool) -> str:
    if labeled and next(image_files(root), None):
        return (
            f"--data-path {root} has images but no class subfolders: put each class in a "
            "folder of its own, or train without classes (--num-classes 0)"
        )
    return f"--data-path {root} has no images ({' '.join(IMAGE_ENDINGS)})"


def sha256_over(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def image_files(folder: Path) -> Iterator[str]:
    """The images below a folder, in ImageFolder's order."""
    for base, names in sorted(folders_below(folder)):
        for name in sorted(names):
            if name.lower().endswith(IMAGE_ENDINGS):
                yield os.path.join(base, name)


def folders_below(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders with the names of their files. Links are followed, but not to a folder above: two
    such links would be 2^40 folders."""
    above: dict[str, frozenset] = {}
    for base, folders, names in os.walk(root, followlinks=True):
        status = os.stat(base)
        place = (status.st_dev, status.st_ino)
        known = above.pop(base, frozenset())
        if place in known:
            folders.clear()
            continue
        above |= {os.path.join(base, folder): known | {place} for folder in folders}
        yield base, names


class HubSource:
    """A Hugging Face data set; the columns are found by their feature types."""

    decodes = True

    def __init__(self, where: Where) -> None:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                f"--dataset_name {where.dataset_name} needs Hugging Face datasets ({error}): "
                "pip install '.[hub]'"
            ) from error

        data, self.name = open_hub(where)
        self.saved = is_saved(saved_in(where))
        self.image_size = where.image_size
        images = [k for k, v in data.features.items() if isinstance(v, datasets.Image)]
        self.image = the_column(self.name, data, images, "image")
        self.label, self.class_names = None, None
        if where.labeled:
            kinds = {k: v for k, v in data.features.items() if isinstance(v, datasets.ClassLabel)}
            kinds = kinds or {
                k: v
                for k, v in data.features.items()
                if k == "label" and getattr(v, "dtype", "").startswith(("int", "uint"))
            }
            self.label = the_column(self.name, data, list(kinds), "label")
            names = getattr(kinds[self.label], "names", None)
            self.class_names = tuple(names) if names else None
        wanted = [self.image] + ([self.label] if self.label else [])
        # Undecoded: a corrupt image is then met by our own reader, as in a folder.
        data = data.select_columns(wanted).cast_column(self.image, datasets.Image(decode=False))
        if len(data) == 0:
            raise InputError(f"data set {self.name} is empty")
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        row = self.data[index]
        image = row[self.image]
        if image is None:
            raise Unreadable(f"{self.place(index)}: it is missing")
        if image["bytes"] is None and self.saved:  # those of the hub are paths in its own cache
            raise Unreadable(f"{self.place(index)} is a path, not a picture")
        file = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
        label = row[self.label] if self.label else 0
        # Hugging Face marks a missing class with -1 or None.
        return decode(file, self.place(index), self.image_size), -1 if label is None else label

    def place(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def fingerprint(self) -> str:
        """Of the number and the classes: the hub's own fingerprint differs between machines."""
        labels = self.data[self.label] if self.label else []
        return sha256_over(str((len(self), list(labels))).encode())


def the_column(name: str, data, candidates: list[str], kind: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    if kind in candidates:
        return kind
    columns = ", ".join(f"{k} ({type(v).__name__})" for k, v in data.features.items())
    found = "several" if candidates else "no"
    hint = ", or train without classes (--num-classes 0)" if kind == "label" else ""
    raise InputError(
        f"data set {name} has {found} {kind} columns among {columns}: save it with "
        f"datasets.save_to_disk after naming the right one {kind!r}{hint}"
    )


def open_hub(where: Where):
    """The data set and its name: a save_to_disk folder, or a hub id and a split."""
    import datasets
    import huggingface_hub

    splits = ["validation", "test"] if where.held_out else ["train"]
    folder, hub_id = saved_in(where), hub_name(where)
    if is_saved(folder):
        try:
            data = datasets.load_from_disk(folder)
        except Exception as error:  # pyarrow's own, and what its files' JSON leads to
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder} is no readable saved data set: {reason}") from error
        if isinstance(data, datasets.DatasetDict):
            for split in splits:
                if split in data:
                    return data[split], f"{folder}[{split}]"
            kind = NoHeldOut if where.held_out else InputError
            raise kind(f"{folder} has splits {', '.join(data)}, not {' or '.join(splits)}")
        if where.held_out:
            raise NoHeldOut(f"{folder} has no splits, so no {' or '.join(splits)} images")
        return data, folder
    if where.data_path or os.path.isdir(hub_id) or hub_id.startswith((".", "/", "~")):
        raise InputError(
            f"{folder} is no folder written by datasets.save_to_disk; for a folder of images "
            f"use --dataset_name folder --data-path {folder}"
        )
    if not hub_answers():  # look into the cache alone, or the client retries for half a minute
        datasets.config.HF_HUB_OFFLINE = True
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    reasons = []
    for split in splits:
        try:
            return (
                datasets.load_dataset(hub_id, split=split, cache_dir=where.cache_dir),
                f"{hub_id}[{split}]",
            )
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reasons.append(error)
    without = where.held_out and all(UNKNOWN_SPLIT in str(error) for error in reasons)
    raise (NoHeldOut if without else InputError)(
        f"data set {hub_id} [{' or '.join(splits)}] cannot be opened "
        f"({' '.join(str(reasons[0]).split())[:200]}). Looked in "
        f"{where.cache_dir or datasets.config.HF_DATASETS_CACHE} (--cache-dir); "
        "a private one needs `hf auth login`; images you have go by --data-path FOLDER"
    ) from reasons[0]


def hub_name(where: Where) -> str:
    return HUB_NAMES.get(where.dataset_name, where.dataset_name)


def saved_in(where: Where) -> str:
    """The folder that a data set may have been saved in."""
    return where.data_path or hub_name(where)


def is_saved(folder: str) -> bool:
    """Did datasets.save_to_disk write this folder?"""
    return any(os.path.isfile(os.path.join(folder, f)) for f in ("state.json", "dataset_dict.json"))


def imagenet(where: Where) -> Source:
    """ImageNet from the hub; with --data-path, SiT's habit, from a folder of images instead."""
    if where.data_path and not is_saved(where.data_path):
        return folder(where)
    return HubSource(where)


def folder(where: Where) -> FolderSource:
    """Own images. Of a folder with train/ and val/, ImageNet's layout, the second is held out."""
    root = given_folder(where)
    parts = [root / part for part in PARTS]
    if all(part.is_dir() for part in parts):
        if where.labeled and subfolders(parts[0]) != subfolders(parts[1]):
            raise InputError(f"--data-path {root}: the classes of train/ are not those of val/")
        return FolderSource(replace(where, data_path=str(parts[where.held_out])))
    if where.held_out:
        raise NoHeldOut(
            f"--dataset_name {where.dataset_name}: {root} has no held-out images: give a folder "
            "with train/ and val/"
        )
    return FolderSource(where)


def no_images(where: Where) -> Source:
    """For --dataset_name latents: a folder of latents would have been recognized."""
    found = where.data_path or "FOLDER"
    raise InputError(
        f"--dataset_name {where.dataset_name} --data-path {found}: give the folder that encode.py "
        "or REPA's preprocessing wrote"
    )
