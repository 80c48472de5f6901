"""Images: data sets, augmentation, and the domain of pictures from any source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from runtime.errors import InputError

from .codecs import PIXELS, Codec, PixelCodec, VAECodec, latent_shape
from .decoding import Unreadable, readable
from .domain import Batch, Domain, check_class_count
from .order import Draws
from .sources import Source, Where


class Item(NamedTuple):
    """One image as a worker hands it over; `error` instead of an exception, because an
    exception would reach the user wrapped in the worker's traceback."""

    raw: np.ndarray | None  # uint8 (C, H, W)
    label: int
    index: int
    problems: tuple[str, ...] = ()
    error: str | None = None


class ImageSet(torch.utils.data.Dataset):
    """Images read one by one; never raises for what is in the data."""

    def __init__(
        self, source: Source, *, num_classes: int, hflip: bool = False, skip_corrupt: bool = False
    ) -> None:
        self.source, self.num_classes = source, num_classes
        self.hflip, self.skip_corrupt = hflip, skip_corrupt
        self.decodes = source.decodes

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def __getitems__(self, draws: Draws) -> Batch:
        pairs = zip(draws.index.tolist(), draws.flipped.tolist(), strict=True)
        batch = collate([self.read(index, flipped) for index, flipped in pairs])
        return batch._replace(flipped=torch.from_numpy(draws.flipped & self.hflip))

    def read(self, wanted: int, flipped: bool) -> Item:
        """Image `wanted`, or with --skip-corrupt the next one that can be read."""
        skip, count = self.skip_corrupt, len(self)
        try:
            found = readable(self.source.read, wanted, count, "images", skip_corrupt=skip)
        except Unreadable as error:
            return failure(wanted, str(error))
        raw, label = found.sample
        if self.num_classes and not 0 <= label < self.num_classes:
            return failure(
                found.index,
                f"{self.source.place(found.index)} has class id {label}, but --num-classes "
                f"{self.num_classes} allows 0 to {self.num_classes - 1}",
            )
        if self.hflip and flipped:
            raw = raw[:, :, ::-1]
        label = label if self.num_classes else 0
        return Item(raw, label, found.index, tuple(found.problems))


def failure(index: int, sentence: str) -> Item:
    return Item(raw=None, label=0, index=index, error=sentence)


def collate(items: Sequence[Item]) -> Batch:
    """Items -> Batch; a batch with an error carries the sentence and no images."""
    problems = [sentence for item in items for sentence in item.problems]
    error = next((item.error for item in items if item.error is not None), None)
    if error is not None:
        return Batch.failed(error, problems)
    raw = torch.from_numpy(np.stack([item.raw for item in items]))
    y = torch.tensor([item.label for item in items], dtype=torch.int64)
    index = torch.tensor([item.index for item in items], dtype=torch.int64)
    return Batch(raw, y, index, problems)


@dataclass(frozen=True)
class ImageDomain(Domain):
    """Pictures of one size, encoded in the loop where there is a VAE."""

    source: Callable[[Where], Source]
    hflip: bool
    asked_classes: int | None = None  # None: as many as the data have
    data_path: str | None = None
    cache_dir: str | None = None
    skip_corrupt: bool = False

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
    ) -> "ImageDomain":
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
            check_class_count(name, len(class_names), num_classes)
        return cls(name, raw_shape, shape, vae, source, asked_classes=num_classes, **rest)

    @property
    def num_classes(self) -> int:
        if self.asked_classes is not None:
            return self.asked_classes
        names = self.train_source.class_names
        if names is None:
            raise InputError(
                f"{self.name} does not say how many classes it has: give --num-classes"
            )
        return len(names)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train_source.class_names or ()

    @cached_property
    def codec(self) -> Codec:
        if self.vae == PIXELS:
            return PixelCodec()
        return VAECodec.load(self.vae, self.cache_dir)

    @cached_property
    def train_source(self) -> Source:
        source = self.source(self.where(held_out=False))
        if source.class_names:
            check_class_count(self.name, len(source.class_names), self.asked_classes)
        return source

    def where(self, *, held_out: bool) -> Where:
        return Where(
            self.name, self.data_path, self.raw_shape[1], labeled=self.asked_classes != 0,
            cache_dir=self.cache_dir, held_out=held_out,
        )  # fmt: skip

    def train_set(self, *, augment: bool = True) -> ImageSet:
        return self.image_set(self.train_source, hflip=self.hflip and augment)

    def held_out_set(self) -> ImageSet:
        return self.image_set(self.source(self.where(held_out=True)), hflip=False)

    def image_set(self, source: Source, *, hflip: bool) -> ImageSet:
        skip = self.skip_corrupt
        return ImageSet(source, num_classes=self.num_classes, hflip=hflip, skip_corrupt=skip)
