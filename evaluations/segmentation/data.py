"""Images with a class per pixel: Pascal VOC, COCO, and small stand-ins that need no mask files.

Images are resized to a square as they are, not cropped: every pixel of a mask counts."""

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

import domains
from domains.codecs import PIXELS
from domains.decoding import Unreadable, opened, to_rgb
from evaluations.metrics.segmentation import IGNORED
from runtime.errors import InputError, LocalError
from runtime.untrusted import name_inside, shown

from .shapes import pixels_of

BACKGROUND = "background"
BRIGHT = 0.25 * 255  # of the stand-ins: what is brighter belongs to the object
VOC_CLASSES = (
    BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
VOC_FOLDER = Path("VOCdevkit", "VOC2012")
VOC_LAYOUT = f"{VOC_FOLDER}/ with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/"
# What a file that is no COCO JSON makes json and pycocotools raise.
NO_COCO = (
    OSError, ValueError, AssertionError, LookupError, TypeError, AttributeError, RecursionError,
    MemoryError, OverflowError,
)  # fmt: skip


class Masks(Protocol):
    """Images and, for every pixel, its class."""

    name: str
    class_names: tuple[str, ...]  # background first where there is one

    def __len__(self) -> int: ...

    def __getitems__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, S, S) and int64 (B, S, S), IGNORED where nothing counts.

        Raises:
            LocalError: a file is damaged.
        """


class Asked(NamedTuple):
    """What to open, in the words of the flags."""

    name: str
    data_path: str | None
    image_size: int
    held_out: bool

    def folder(self, layout: str) -> Path:
        if self.data_path is None:
            raise InputError(f"{self.name} needs --masks-path FOLDER, which holds {layout}")
        return Path(self.data_path)


def open_masks(name: str, data_path: str | None, image_size: int, *, held_out: bool) -> Masks:
    """Images with masks, by a name of MASKS.

    Raises:
        InputError: no such name, or the files are not there, damaged, or of another kind.
    """
    if name not in MASKS:
        raise InputError(
            f"no images with masks are called {name!r}; choose from {', '.join(MASKS)}"
        )
    if image_size < 1:
        raise InputError(f"--image-size {image_size}: 1 pixel or more")
    return MASKS[name](Asked(name, data_path, image_size, held_out))


class FileMasks(ABC):
    """Masks of image files, resized to (S, S): images bilinear as PIL does it, masks nearest."""

    def __init__(self, asked: Asked, class_names: tuple[str, ...], images: Sequence[str]) -> None:
        self.name, self.image_size, self.class_names = asked.name, asked.image_size, class_names
        self.images = np.array([os.fsencode(image) for image in images])  # as FileSource's

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        try:
            pairs = [self.read(int(number)) for number in numbers]
        except Unreadable as error:
            raise LocalError(str(error)) from error
        images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        return images, masks.long()

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (3, S, S) and uint8 (S, S)."""
        from PIL import Image

        size, place = (self.image_size, self.image_size), self.place(number)
        with opened(place, place) as image:
            # Not turned by EXIF: masks are drawn on the pixels as they are stored.
            resized = to_rgb(image).resize(size, Image.Resampling.BILINEAR)
        mask = self.mask(number, (image.height, image.width))
        mask = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        return np.asarray(resized).transpose(2, 0, 1).copy(), np.asarray(mask)

    def place(self, number: int) -> str:
        return os.fsdecode(self.images[number].item())

    @abstractmethod
    def mask(self, number: int, shape: tuple[int, int]) -> np.ndarray:
        """Classes of an image's pixels, uint8 of the image's shape (H, W).

        Raises:
            Unreadable: damaged, or of another shape.
        """

    def check_shape(self, number: int, mask: tuple[int, int], image: tuple[int, int]) -> None:
        if mask != image:
            raise Unreadable(
                f"{self.place(number)} has {image[1]} x {image[0]} pixels, but its mask "
                f"{mask[1]} x {mask[0]}"
            )


def check_files(files: Sequence[str], named_by: str | Path) -> None:
    """Are there any, and are they there? Asks every folder once."""
    if not files:
        raise InputError(f"{named_by} names no images: unpack the data set again")
    folders = {os.path.dirname(file) for file in files}
    present = {
        os.path.join(folder, name)
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
    }
    absent = next((file for file in files if file not in present), None)
    if absent is not None:
        raise InputError(f"{named_by} names {absent}, which is not there: unpack it too")


def check_inside(root: Path, files: Sequence[str], named_by: Path) -> None:
    """
    Raises:
        InputError: a file is not below the root.
    """
    for file in files:
        inside = file.removeprefix(f"{root}/")
        if inside == file or ".." in Path(inside).parts:
            raise InputError(f"{named_by} names {shown(file)}, which is not in --masks-path {root}")


class VOCMasks(FileMasks):
    """Pascal VOC 2012: 1,464 images to train on, 1,449 (val) held out; object borders IGNORED."""

    def __init__(self, asked: Asked) -> None:
        from torchvision.datasets import VOCSegmentation

        root = asked.folder(VOC_LAYOUT)
        part = "val" if asked.held_out else "train"
        try:
            data = VOCSegmentation(root, year="2012", image_set=part, download=False)
        except (RuntimeError, OSError, UnicodeDecodeError) as error:
            raise InputError(no_voc(root, part)) from error
        listed = root / VOC_FOLDER / "ImageSets" / "Segmentation" / f"{part}.txt"
        check_inside(root, [*data.images, *data.masks], listed)
        check_files(data.images, listed)
        check_files(data.masks, listed)
        super().__init__(asked, VOC_CLASSES, data.images)
        self.masks = np.array([os.fsencode(file) for file in data.masks])

    def mask(self, number: int, shape: tuple[int, int]) -> np.ndarray:
        place = os.fsdecode(self.masks[number].item())
        with opened(place, place) as image:
            mode, mask = image.mode, np.asarray(image)
        if mode not in ("P", "L"):
            raise Unreadable(f"{place} is no mask: its mode is {mode}, not a class id per pixel")
        self.check_shape(number, mask.shape, shape)
        classes, last = np.flatnonzero(np.bincount(mask.ravel())), len(VOC_CLASSES) - 1
        strange = classes[(classes > last) & (classes != IGNORED)]
        if len(strange):
            raise Unreadable(
                f"{place} has pixels of class {strange[0]}, but VOC has 0 to {last}, "
                f"and {IGNORED} for borders"
            )
        return mask


def no_voc(root: Path, part: str) -> str:
    start = f"--masks-path {root} does not hold {VOC_LAYOUT}{part}.txt"
    for above in root.resolve().parents[:2]:
        if (above / VOC_FOLDER).is_dir() and (above / VOC_FOLDER).is_relative_to(root.resolve()):
            return f"{start}; give the folder above, --masks-path {above}"
    return start


class COCOMasks(FileMasks):
    """COCO 2017, train or held out val, of one kind of annotation: things or stuff.

    Classes are the JSON's categories in the order of their ids, from 1; what nobody annotated is
    background, 0. Where annotations overlap the smaller one wins: they are painted by decreasing
    area, in the file's order where areas are equal. Crowds are painted IGNORED.
    """

    def __init__(self, asked: Asked, *, kind: str) -> None:
        part = "val2017" if asked.held_out else "train2017"
        layout = f"{part}/*.jpg and annotations/{kind}_{part}.json"
        root = asked.folder(layout)
        self.json = root / "annotations" / f"{kind}_{part}.json"
        if not self.json.is_file():
            raise InputError(f"--masks-path {root} does not hold {layout}: there is no {self.json}")
        reader = import_coco(asked.name)
        try:
            with redirect_stdout(io.StringIO()):  # it reports its progress
                coco = reader(self.json)
            categories = sorted(coco.cats)
            names = tuple(str(coco.cats[number]["name"]) for number in categories)
            names_of_files = [name_inside(image["file_name"]) for image in coco.imgs.values()]
            files = [str(root / part / name) for name in names_of_files]
            shapes = shapes_of(coco, {number: 1 + i for i, number in enumerate(categories)})
        except NO_COCO as error:
            raise InputError(f"{self.json} is no JSON of COCO's {kind}: {reason(error)}") from error
        if not 1 <= len(names) < IGNORED:
            raise InputError(
                f"{self.json} has {len(names)} categories: masks have room for 1 to {IGNORED - 1}"
            )
        check_files(files, self.json)
        super().__init__(asked, (BACKGROUND, *names), files)
        self.shapes, self.ends = b"".join(shapes), np.cumsum([len(one) for one in shapes])

    def mask(self, number: int, shape: tuple[int, int]) -> np.ndarray:
        start = self.ends[number - 1] if number else 0
        stated, shapes = json.loads(self.shapes[start : self.ends[number]])
        self.check_shape(number, tuple(stated), shape)
        mask = np.zeros(shape, dtype=np.uint8)
        for annotation, label, segmentation in shapes:
            try:
                mask[pixels_of(segmentation, *shape)] = label
            except (ValueError, TypeError, LookupError, OverflowError) as error:
                raise Unreadable(
                    f"{self.json}: the segmentation of annotation {annotation} cannot be read: "
                    f"{reason(error)}"
                ) from error
        return mask


def import_coco(name: str):
    """pycocotools' class of a JSON file."""
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise InputError(
            f"{name} needs pycocotools ({error}): pip install '.[segmentation]'"
        ) from error
    return COCO


def shapes_of(coco, labels: dict[int, int]) -> list[bytes]:
    """Per image its (height, width) and, in painting order, [(id, label, segmentation), ...].

    Pickled, to be joined to one block of bytes, for the reason that file names are: a JSON has
    millions of numbers.
    """
    shapes = []
    for number, image in coco.imgs.items():
        annotations = sorted(coco.imgToAnns.get(number, []), key=lambda one: -one["area"])
        content = [
            (
                one["id"],
                IGNORED if one.get("iscrowd") else labels[one["category_id"]],
                one["segmentation"],
            )
            for one in annotations
        ]
        size = int(image["height"]), int(image["width"])
        shapes.append(json.dumps([size, content]).encode())
    return shapes


def reason(error: Exception) -> str:
    """What is wrong with a JSON, without line breaks."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return " ".join(str(error).split())[:160] or type(error).__name__


class BrightMasks:
    """Digits or clothes: pixels brighter than a quarter of white have 1 + their image's class.

    A stand-in for real masks, to try the probe in seconds: these data sets have none, and which
    pixels are the object is guessed from brightness.
    """

    def __init__(self, asked: Asked) -> None:
        domain = domains.build(
            asked.name, image_size=asked.image_size, data_path=asked.data_path, vae=PIXELS
        )
        self.name = asked.name
        self.class_names = (BACKGROUND, *domain.train_source.class_names)
        self.data = domain.held_out_set() if asked.held_out else domain.train_set(augment=False)

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        batch = self.data.__getitems__(domains.Draws.plain(numbers)).checked()
        bright = batch.raw[:, 0] > BRIGHT
        return batch.raw, bright * (1 + batch.y)[:, None, None]


MASKS: dict[str, Callable[[Asked], Masks]] = {
    "voc": VOCMasks,
    "coco-things": partial(COCOMasks, kind="instances"),
    "coco-stuff": partial(COCOMasks, kind="stuff"),
    "digits": BrightMasks,
    "fashion-mnist": BrightMasks,
}
