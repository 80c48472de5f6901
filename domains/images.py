"""Images: data sets, augmentation, batches, codec and picture sheets."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError, LocalError
from runtime.files import atomic_write
from runtime.random import seed_of

from .codecs import PIXELS, Codec, PixelCodec, VAECodec, latent_shape
from .decoding import Unreadable
from .sources import Source, Where

MAX_FAILURES = 1000  # unreadable images in a row before --skip-corrupt gives up


@dataclass(frozen=True)
class Draw:
    """Which image, and the seed of its augmentation: a function of (seed, step, position)."""

    index: int
    seed: int


class Item(NamedTuple):
    """One image as a worker hands it over; `error` instead of an exception, because an
    exception would reach the user wrapped in the worker's traceback."""

    raw: np.ndarray | None  # uint8 (C, H, W)
    label: int
    index: int
    problems: tuple[str, ...] = ()
    error: str | None = None


class Batch(NamedTuple):
    """What the loop sees; call `checked()` in the main process before using it."""

    raw: Tensor  # uint8 (B, C, H, W)
    y: Tensor  # int64 (B,), zeros where unconditional
    index: Tensor  # int64 (B,), the image's number in its data set
    problems: list[str]  # a sentence per corrupt image that another one replaced
    error: str | None = None

    def checked(self) -> "Batch":
        if self.error is not None:
            raise LocalError(self.error)
        return self


class ImageSet(torch.utils.data.Dataset):
    """Map-style: a Draw in, an Item out; never raises for what is in the data."""

    def __init__(
        self, source: Source, *, num_classes: int, hflip: bool = False, skip_corrupt: bool = False
    ) -> None:
        self.source, self.num_classes = source, num_classes
        self.hflip, self.skip_corrupt = hflip, skip_corrupt

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> Item:
        problems: list[str] = []
        for offset in range(min(len(self), MAX_FAILURES)):
            index = (draw.index + offset) % len(self)
            try:
                raw, label = self.source.read(index)
            except Unreadable as error:
                if not self.skip_corrupt:
                    return failure(index, f"{error}; --skip-corrupt goes on without such images")
                problems.append(str(error))
                continue
            if self.num_classes and not 0 <= label < self.num_classes:
                return failure(
                    index,
                    f"{self.source.place(index)} has class id {label}, but --num-classes "
                    f"{self.num_classes} allows 0 to {self.num_classes - 1}",
                )
            if self.hflip and seed_of("hflip", draw.seed) & 1:
                raw = raw[:, :, ::-1]
            return Item(raw, label if self.num_classes else 0, index, tuple(problems))
        return failure(
            draw.index, f"{len(problems)} images in a row cannot be read, the first: {problems[0]}"
        )


def failure(index: int, sentence: str) -> Item:
    return Item(raw=None, label=0, index=index, error=sentence)


def collate(items: Sequence[Item]) -> Batch:
    """Items -> Batch; a batch with an error carries the sentence and no images."""
    problems = [sentence for item in items for sentence in item.problems]
    error = next((item.error for item in items if item.error is not None), None)
    if error is not None:
        nothing = torch.empty(0, dtype=torch.int64)
        return Batch(torch.empty(0, dtype=torch.uint8), nothing, nothing, problems, error)
    raw = torch.from_numpy(np.stack([item.raw for item in items]))
    y = torch.tensor([item.label for item in items], dtype=torch.int64)
    index = torch.tensor([item.index for item in items], dtype=torch.int64)
    return Batch(raw, y, index, problems)


@dataclass(frozen=True)
class Domain:
    """Images of one size with their codec; the data and the VAE are opened when first asked for.

    So sampling needs no data, and --dry-run neither data nor VAE weights.
    """

    name: str
    source: Callable[[Where], Source]
    raw_shape: tuple[int, int, int]  # an image, uint8 (C, H, W)
    shape: tuple[int, ...]  # the model's input (C, h, w)
    vae: str
    hflip: bool
    asked_classes: int | None = None  # None: as many as the data have
    data_path: str | None = None
    cache_dir: str | None = None
    skip_corrupt: bool = False

    collate = staticmethod(collate)

    @classmethod
    def create(
        cls,
        name: str,
        source: Callable[[Where], Source],
        *,
        image_size: int,
        channels: int,
        num_classes: int | None,
        vae: str,
        only_size: int | None = None,
        class_names: tuple[str, ...] | None = None,
        **rest,
    ) -> "Domain":
        """A domain from resolved flags.

        Args:
            only_size: the pixels of data that come in one size; None: images are cropped to any.
            class_names: where they are known before the data are opened.

        Raises:
            InputError: flags that do not fit together.
        """
        if only_size and image_size != only_size:
            raise InputError(f"--image-size {image_size}: {name} has images of {only_size} pixels")
        if image_size < 1:
            raise InputError(f"--image-size {image_size}: 1 pixel or more")
        if num_classes is not None and num_classes < 0:
            raise InputError(f"--num-classes {num_classes}: 0 (no classes) or more")
        if vae != PIXELS and channels != 3:
            raise InputError(f"--vae {vae} needs color images; for {name} use --vae {PIXELS}")
        raw_shape = (channels, image_size, image_size)
        shape = raw_shape
        if vae != PIXELS:
            shape = latent_shape(vae, image_size, rest.get("cache_dir"))
        if class_names:
            check_class_count(name, class_names, num_classes)
        return cls(name, source, raw_shape, shape, vae, asked_classes=num_classes, **rest)

    @property
    def num_classes(self) -> int:
        """Classes the model is conditioned on; 0: unconditional. Opens the data if it must."""
        if self.asked_classes is not None:
            return self.asked_classes
        names = self.train_source.class_names
        if names is None:
            raise InputError(
                f"{self.name} does not say how many classes it has: give --num-classes"
            )
        return len(names)

    @property
    def guided_channels(self) -> int | None:
        """The channels guided by default: 3 of a Stable Diffusion latent's 4, else None: all."""
        return 3 if self.vae != PIXELS and self.shape[0] == 4 else None

    @cached_property
    def codec(self) -> Codec:
        if self.vae == PIXELS:
            return PixelCodec()
        return VAECodec.load(self.vae, self.cache_dir)

    @cached_property
    def train_source(self) -> Source:
        source = self.source(self.where(held_out=False))
        if source.class_names:
            check_class_count(self.name, source.class_names, self.asked_classes)
        return source

    def where(self, *, held_out: bool) -> Where:
        return Where(
            self.name, self.data_path, self.raw_shape[1], labeled=self.asked_classes != 0,
            cache_dir=self.cache_dir, held_out=held_out,
        )  # fmt: skip

    def train_set(self, *, augment: bool = True) -> ImageSet:
        """The images to train on, flipped by the Draw's seed if the domain flips and `augment`."""
        return self.image_set(self.train_source, hflip=self.hflip and augment)

    def held_out_set(self) -> ImageSet:
        """Real images that training never sees, unflipped; InputError where there are none."""
        return self.image_set(self.source(self.where(held_out=True)), hflip=False)

    def image_set(self, source: Source, *, hflip: bool) -> ImageSet:
        skip = self.skip_corrupt
        return ImageSet(source, num_classes=self.num_classes, hflip=hflip, skip_corrupt=skip)

    def save_grid(self, raw: Tensor, path: str | Path, columns: int | None = None) -> None:
        """uint8 (B, C, H, W) -> a PNG sheet, row by row; tiny images are enlarged, unblurred."""
        from PIL import Image

        count, channels, height, width = raw.shape
        columns = columns or math.ceil(math.sqrt(count))
        rows = math.ceil(count / columns)
        times, gap = max(1, 64 // max(height, width)), 2
        tile_height, tile_width = height * times + gap, width * times + gap
        sheet = np.full((rows * tile_height + gap, columns * tile_width + gap, 3), 255, np.uint8)
        tiles = raw.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
        for number, tile in enumerate(tiles.repeat(times, axis=1).repeat(times, axis=2)):
            top = gap + number // columns * tile_height
            left = gap + number % columns * tile_width
            sheet[top : top + height * times, left : left + width * times] = tile
        with atomic_write(path) as file:
            Image.fromarray(sheet).save(file, format="PNG")


def check_class_count(name: str, class_names: Sequence[str], num_classes: int | None) -> None:
    if num_classes and num_classes < len(class_names):
        raise InputError(
            f"{name} has {len(class_names)} classes, but --num-classes is {num_classes}: "
            f"give {len(class_names)} or more, or 0 to train without classes"
        )
