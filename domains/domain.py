"""What every modality gives the loop: batches, shapes, a codec, and pictures of samples."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError, LocalError

from .codecs import PIXELS, Codec
from .order import Draws
from .pictures import save_grid


class Batch(NamedTuple):
    """What the loop sees; call `checked()` in the main process before using it."""

    raw: Tensor  # uint8 pixels (B, C, H, W), or float16 moments (B, 2C, h, w) of stored latents
    y: Tensor  # int64 (B,), zeros where unconditional
    index: Tensor  # int64 (B,), the sample's number in its data set
    problems: list[str]  # a sentence per corrupt image that another one replaced
    error: str | None = None
    flipped: Tensor | None = None  # bool (B,), which are mirror images; None: none
    stored: tuple[Tensor, ...] = ()  # features of these samples, (B, N, Z) or (B, Z) per store

    @classmethod
    def failed(cls, error: str, problems: Sequence[str] = ()) -> "Batch":
        """No samples, but the sentence that says why."""
        nothing = torch.empty(0, dtype=torch.int64)
        return cls(torch.empty(0, dtype=torch.uint8), nothing, nothing, list(problems), error)

    def to_device(self, device: torch.device) -> "Batch":
        """What the network sees goes to the device, from page-locked memory: nothing waits."""
        pinned = device.type == "cuda"
        raw, y, *stored = (
            (part.pin_memory() if pinned else part).to(device, non_blocking=True)
            for part in (self.raw, self.y, *self.stored)
        )
        return self._replace(raw=raw, y=y, stored=tuple(stored))

    def checked(self) -> "Batch":
        if self.error is not None:
            raise LocalError(self.error)
        return self


class DataSet(Protocol):
    """Whole micro-batches by their Draws; what is wrong in the data is in the Batch, not raised."""

    decodes: bool  # reading costs enough to be worth worker processes

    def __len__(self) -> int: ...

    def __getitems__(self, draws: Draws) -> Batch:
        """The name by which torch's DataLoader asks for a whole batch."""


def as_read(batch: Batch) -> Batch:
    """The `collate_fn` of a DataLoader whose set makes whole batches."""
    return batch


@dataclass(frozen=True)
class Domain(ABC):
    """Samples of one shape with their codec; data and VAE are opened when first asked for.

    So sampling needs no data, and --dry-run neither data nor VAE weights.
    """

    name: str
    raw_shape: tuple[int, ...]  # a picture, uint8 (C, H, W); sound, int16 (channels, samples)
    shape: tuple[int, ...]  # the model's input (C, *axes)
    vae: str

    @property
    @abstractmethod
    def codec(self) -> Codec: ...

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes the model is conditioned on; 0: unconditional. Opens the data if it must."""

    @property
    def multi_label(self) -> bool:
        """Whether the condition is multi-hot (B, K) instead of ids (B,)."""
        return False

    @property
    def choices(self) -> int:
        """How many conditions a sample may be drawn with; 0: none."""
        return self.num_classes

    def condition(self, drawn: Tensor) -> Tensor:
        """What the model is given for numbers below `choices` (B,): class ids are those numbers."""
        return drawn

    @property
    def rounding(self) -> dict[str, str]:
        """How floats become the numbers of a file of samples, for its protocol."""
        return {"uint8": "127.5 x + 128, clamped to 0..255, truncated"}

    def arrays(self, raw: Tensor) -> np.ndarray:
        """Decoded samples as a file of samples holds them: images are (B, H, W, C)."""
        return raw.permute(0, 2, 3, 1).cpu().numpy()

    @abstractmethod
    def train_set(self, *, augment: bool = True) -> DataSet:
        """The samples to train on, flipped by their Draws if the domain flips and `augment`."""

    @abstractmethod
    def held_out_set(self) -> DataSet:
        """Real samples that training never sees, unflipped; NoHeldOut where there are none."""

    @property
    def guided_channels(self) -> int | None:
        """The channels guided by default: 3 of a Stable Diffusion latent's 4, else None: all."""
        return 3 if self.vae != PIXELS and self.shape[0] == 4 else None

    def save_grid(self, raw: Tensor, path: str | Path, columns: int | None = None) -> None:
        """uint8 (B, C, H, W) -> a PNG sheet."""
        save_grid(raw, path, columns)


def check_class_count(name: str, classes: int, num_classes: int | None) -> None:
    if num_classes and num_classes < classes:
        raise InputError(
            f"{name} has {classes} classes, but --num-classes is {num_classes}: "
            f"give {classes} or more, or 0 to train without classes"
        )
