"""Latents that a VAE made before training: their sets, codecs and domain, whatever the folder.

What is in a folder, and how it is read, is a `LatentSource`: see image_store.py and foreign.py."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.random import generator

from .codecs import PIXELS, Codec, VAECodec, first_difference, posterior_draw, to_uint8
from .decoding import Unreadable
from .domain import Batch, Domain, check_class_count
from .order import Draws
from .sources import NoHeldOut

SD_SCALE = 0.18215  # of Stable Diffusion's VAEs: their latents have a deviation of about 1 / scale
SD_DOWN, SD_CHANNELS = 8, 4
MOST_CLASSES = 1_000_000  # of stored latents: a model has a row for each

Load = Callable[[str, str | None], Codec]  # a VAE by --vae and --cache-dir


class LatentSource(Protocol):
    """Latents on disk with their classes; they are opened when first asked for."""

    called: str  # what a person calls it: its folder
    shape: tuple[int, ...]  # the model's input (C, h, w)
    image_size: int  # pixels of the images that were encoded
    num_classes: int  # opens the labels
    mirrors: bool  # whether mirror images are stored, too
    decodes: bool  # see DataSet
    made_of: str | None  # fingerprint of the images; None: it is not recorded

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """SHA-256 of what tells data apart without reading them: names, sizes, classes."""

    def gather(self, index: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is stored of the images or of their mirror images (B, ...), and classes (B,).

        Args:
            flipped: bool (B,), nowhere true without `mirrors`.

        Raises:
            Unreadable: a file of the batch is damaged.
        """

    def vae(self, asked: str | None, cache_dir: str | None) -> str:
        """The --vae that decodes these latents.

        Raises:
            InputError: the one that was asked for is another.
        """

    def codec(self, vae: str, cache_dir: str | None) -> Codec: ...


def check_image_size(called: str, stored: int, asked: int | None) -> None:
    if asked not in (None, stored):
        raise InputError(f"--image-size {asked}, but {called} holds latents of {stored} pixels")


class LatentSet(torch.utils.data.Dataset):
    """Whole batches out of a LatentSource."""

    def __init__(self, source: LatentSource, *, labeled: bool, hflip: bool) -> None:
        self.source, self.labeled = source, labeled
        self.hflip = hflip and source.mirrors
        self.decodes = source.decodes

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def __getitems__(self, draws: Draws) -> Batch:
        flipped = draws.flipped & self.hflip
        try:
            raw, labels = self.source.gather(draws.index, flipped)
        except Unreadable as error:
            return Batch.failed(str(error))
        y = labels if self.labeled else np.zeros_like(labels)
        raw, y, index, flipped = map(torch.from_numpy, (raw, y, draws.index, flipped))
        return Batch(raw, y, index, problems=[], flipped=flipped)


@dataclass(frozen=True)
class LatentDomain(Domain):
    """Pictures as latents that were made before: flags must agree with what is stored."""

    source: LatentSource
    asked_classes: int | None = None  # None: as many as are stored
    cache_dir: str | None = None

    @classmethod
    def create(
        cls, name: str, source: LatentSource, *, image_size: int | None, num_classes: int | None,
        vae: str | None, cache_dir: str | None,
    ) -> "LatentDomain":  # fmt: skip
        """A domain from the flags that were given; None stands for what is stored.

        Raises:
            InputError: flags that disagree with what is stored.
        """
        size = source.image_size
        check_image_size(source.called, size, image_size)
        if num_classes is not None and num_classes < 0:
            raise InputError(f"--num-classes {num_classes}: 0 (no classes) or more")
        vae = source.vae(vae, cache_dir)
        return cls(name, (3, size, size), source.shape, vae, source, num_classes, cache_dir)

    @property
    def stored_in(self) -> str:
        return self.source.called

    @property
    def data_set(self) -> str | None:
        return self.source.made_of

    @property
    def num_classes(self) -> int:
        return self.source.num_classes if self.asked_classes is None else self.asked_classes

    @cached_property
    def codec(self) -> Codec:
        return self.source.codec(self.vae, self.cache_dir)

    def train_set(self, *, augment: bool = True) -> LatentSet:
        stored = self.source.num_classes
        check_class_count(self.source.called, stored, self.asked_classes)
        if self.num_classes and not stored:
            raise InputError(f"{self.source.called} has no classes: leave out --num-classes")
        return LatentSet(self.source, labeled=self.num_classes > 0, hflip=augment)

    def held_out_set(self) -> LatentSet:
        raise NoHeldOut(f"{self.source.called}: stored latents have no held-out part")


class StoredCodec:
    """Latents are stored, so there is nothing to encode; the VAE is opened to show samples only.

    So training needs neither diffusers nor the VAE's weights.

    Args:
        identity: of the VAE: "name", "scale", "shift" and, where it is known, "sha256".
        name: of the VAE to open, as --vae has it.
        load: how it is opened.
    """

    uses_noise = True

    def __init__(
        self, identity: dict, name: str, cache_dir: str | None, load: Load = VAECodec.load
    ) -> None:
        self.identity, self.name, self.cache_dir, self.load = identity, name, cache_dir, load
        self.device = torch.device("cpu")

    @cached_property
    def vae(self) -> Codec:
        """The VAE on its device.

        Raises:
            InputError: not to be had here, or not the one that made these latents.
        """
        vae = self.load(self.name, self.cache_dir)
        if key := first_difference(self.identity, vae.identity):
            raise InputError(
                f"--vae {self.name} has {key} {vae.identity[key]}, but the VAE that made these "
                f"latents had {self.identity[key]}: give --vae that one"
            )
        return vae.to(self.device)

    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def to_input(self, stored: Tensor, noise: Tensor) -> Tensor:
        """Moments (B, 2C, *axes) -> a draw from the posterior, as the VAE's codec does it."""
        z = posterior_draw(stored, noise)
        return (z - self.identity["shift"]) * self.identity["scale"]

    def decode(self, x: Tensor) -> Tensor:
        return self.vae.decode(x)

    def to(self, device: torch.device | str) -> "StoredCodec":
        self.device = torch.device(device)
        return self


class SyntheticCodec(StoredCodec):
    """Random latents are no pictures: three channels are shown as they are."""

    def decode(self, x: Tensor) -> Tensor:
        return to_uint8(x[:, :3] / 3)


class Synthetic:
    """Random moments of Stable Diffusion's shape, as many as ImageNet has images, in memory.

    They measure a machine and try out a cluster without any data; nothing can be learned.
    """

    called = "--dataset_name synthetic"
    num_classes = 1000
    mirrors = False
    decodes = False
    made_of = None
    distinct = 1024  # moments in memory; index i is number i modulo this

    def __init__(self, data_path: None, image_size: int | None) -> None:
        self.image_size = image_size or 256
        if self.image_size % SD_DOWN:
            raise InputError(f"--image-size {self.image_size} is no multiple of {SD_DOWN}")
        side = self.image_size // SD_DOWN
        self.shape = (SD_CHANNELS, side, side)

    @cached_property
    def moments(self) -> np.ndarray:
        """float16 (distinct, 2C, h, w): means of the usual deviation, and small deviations."""
        normal = torch.randn(
            self.distinct, 2, *self.shape, generator=generator("cpu", "synthetic latents")
        )
        mean, std = normal[:, 0] / SD_SCALE, normal[:, 1].abs() * 0.1
        return torch.cat([mean, std], dim=1).half().numpy()

    def __len__(self) -> int:
        return 1_281_167

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.called} {self.shape}".encode()).hexdigest()

    def gather(self, index: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.moments[index % self.distinct], index % self.num_classes

    def vae(self, asked: str | None, cache_dir: str | None) -> str:
        if asked not in (None, PIXELS):
            raise InputError(f"--vae {asked}: {self.called} has no pictures, leave out --vae")
        return PIXELS

    def codec(self, vae: str, cache_dir: str | None) -> SyntheticCodec:
        identity = {"name": "synthetic", "scale": SD_SCALE, "shift": 0.0}
        return SyntheticCodec(identity, vae, cache_dir)
