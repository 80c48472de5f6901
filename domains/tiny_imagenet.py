"""Tiny ImageNet: 200 classes of 64x64 photos in the folder that its authors publish."""

import os
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import InputError
from runtime.untrusted import name_inside, read_text

from .sources import FileSource, Where, given_folder, image_files, sha256_over

FOLDER = "tiny-imagenet-200"
LAYOUT = (
    "wnids.txt, train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt, "
    f"as {FOLDER}.zip unpacks them"
)


class TinyImageNet(FileSource):
    """The photos of train/, or held out those of val/; test/ has no classes and is not read.

    The classes are those of wnids.txt in sorted order, not in the file's: as ImageFolder numbers
    train/. Where there is a words.txt, they are called by their words.
    """

    def __init__(self, where: Where) -> None:
        root = given_folder(where)
        check_layout(root)
        wnids = read_wnids(root / "wnids.txt")
        if not wnids:
            raise InputError(f"{root / 'wnids.txt'} names no class: unpack {FOLDER}.zip again")
        collect = held_out_files if where.held_out else train_files
        files, labels = collect(root, wnids)
        super().__init__(root, where.image_size, class_names(root, wnids), files, labels)

    def fingerprint(self) -> str:
        """Of the classes too: those of val/ are not part of the names."""
        return sha256_over(super().fingerprint().encode(), self.labels)


def read_wnids(path: Path) -> list[str]:
    """
    Raises:
        InputError: not there, or one is no name of a folder.
    """
    wnids = sorted({line.strip() for _, line in lines_of(path)})
    try:
        return [name_inside(wnid) for wnid in wnids]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def check_layout(root: Path) -> None:
    if (root / "wnids.txt").is_file():
        return
    inside = root / FOLDER
    mend = f"; give --data-path {inside}" if (inside / "wnids.txt").is_file() else ""
    raise InputError(f"--data-path {root} is not Tiny ImageNet's folder ({LAYOUT}){mend}")


def train_files(root: Path, wnids: list[str]) -> tuple[list[str], list[int]]:
    """The photos of train/ and their classes.

    Raises:
        InputError: a class has none.
    """
    files, labels = [], []
    for label, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        found = list(image_files(folder))
        if not found:
            raise InputError(
                f"{root / 'wnids.txt'} names {wnid}, but {folder} has no images: "
                f"--data-path needs {LAYOUT}"
            )
        files += found
        labels += [label] * len(found)
    return files, labels


def held_out_files(root: Path, wnids: list[str]) -> tuple[list[str], list[int]]:
    """The photos of val/ and their classes, in the order of val_annotations.txt.

    Raises:
        InputError: no annotations, or one of an unknown class or of a photo that is not there.
    """
    annotations, folder = root / "val" / "val_annotations.txt", root / "val" / "images"
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    numbers = {wnid: label for label, wnid in enumerate(wnids)}
    files, labels = [], []
    for number, line in lines_of(annotations):
        name, wnid, *_ = [*line.split("\t"), ""]  # then the corners of a box: x0, y0, x1, y1
        if wnid not in numbers:
            raise InputError(
                f"{annotations}, line {number}: {wnid!r} is no class of wnids.txt "
                "(a line is FILE, WNID, X0, Y0, X1, Y1 with tabs between)"
            )
        if name not in present:
            raise InputError(f"{annotations}, line {number}: there is no {name} in {folder}")
        files.append(str(folder / name))
        labels.append(numbers[wnid])
    if not files:
        raise InputError(f"{annotations} names no images: unpack {FOLDER}.zip again")
    return files, labels


def class_names(root: Path, wnids: list[str]) -> tuple[str, ...]:
    """The words of words.txt; a class that it lacks is called by its id."""
    path = root / "words.txt"
    words: dict[str, str] = {}
    if path.is_file():
        words = dict(line.split("\t", 1) for _, line in lines_of(path) if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1.

    Raises:
        InputError: there is no such file, or it is no text.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}): --data-path needs {LAYOUT}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line
