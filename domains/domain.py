"""What every modality gives the loop: batches, shapes, a codec, and pictures of samples."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from runtime import signals
from runtime.errors import InputError, LocalError

from .codecs import PIXELS, Codec
from .order import Draws
from .pictures import save_grid

TELLING = 16  # samples that tell one data set from another
Condition = dict[str, Tensor]  # what a model takes besides x_t and t


class Batch(NamedTuple):
    """What the loop sees; call `checked()` in the main process before using it."""

    # uint8 pixels (B, C, H, W), of clips (B, C, T, H, W); float16 moments (B, 2C, h, w) of latents
    raw: Tensor
    # int64 (B,), zeros where unconditional; multi-hot (B, K); embedded texts (B, W) or (B, L, W)
    y: Tensor
    index: Tensor  # int64 (B,), the sample's number in its data set
    problems: list[str]  # a sentence per corrupt image that another one replaced
    error: str | None = None
    flipped: Tensor | None = None  # bool (B,), which are mirror images; None: none
    stored: tuple[Tensor, ...] = ()  # features of these samples, (B, N, Z) or (B, Z) per store
    mask: Tensor | None = None  # bool (B, 1, *axes), false at padding; None: there is none
    null: Tensor | None = None  # as y, no text's; None: the model has a null of its own

    @classmethod
    def failed(cls, error: str, problems: Sequence[str] = ()) -> "Batch":
        """No samples, but the sentence that says why."""
        nothing = torch.empty(0, dtype=torch.int64)
        return cls(torch.empty(0, dtype=torch.uint8), nothing, nothing, list(problems), error)

    def to_device(self, device: torch.device) -> "Batch":
        """What the network sees goes to the device, from page-locked memory: nothing waits."""
        pinned = device.type == "cuda"
        raw, y, mask, null, *stored = (
            part if part is None else (part.pin_memory() if pinned else part).to(
                device, non_blocking=True
            )
            for part in (self.raw, self.y, self.mask, self.null, *self.stored)
        )  # fmt: skip
        return self._replace(raw=raw, y=y, mask=mask, null=null, stored=tuple(stored))

    @property
    def cond(self) -> Condition:
        """What the model takes besides x_t and t, nothing dropped."""
        parts = {"y": self.y, "mask": self.mask, "null": self.null}
        return {name: part for name, part in parts.items() if part is not None}

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


def fingerprint_of(images: DataSet) -> str:
    """SHA-256 of what tells these data from others: what the set's own `fingerprint` says, where it
    has one, else of its length and its first samples.

    Raises:
        LocalError: something is wrong with them.
    """
    own = getattr(images, "fingerprint", None)
    if own:
        return own()
    first = images.__getitems__(Draws.plain(range(min(TELLING, len(images))))).checked()
    digest = hashlib.sha256(f"{len(images)} {tuple(first.raw.shape)}".encode())
    for part in (first.raw, first.y):
        digest.update(part.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def as_read(batch: Batch) -> Batch:
    """The `collate_fn` of a DataLoader whose set makes whole batches."""
    return batch


def loader_of(
    images: DataSet, batches: Iterable[Draws], workers: int,
    generator: torch.Generator | None = None,
) -> DataLoader:  # fmt: skip
    """Whole batches, read by so many processes, which signals to all of a job do not end."""
    return DataLoader(
        images, batch_sampler=batches, collate_fn=as_read, num_workers=workers,
        generator=generator, worker_init_fn=signals.ignored,
    )  # fmt: skip


@dataclass(frozen=True)
class Domain(ABC):
    """Samples of one shape with their codec; data and VAE are opened when first asked for.

    So sampling needs no data, and --dry-run neither data nor VAE weights.
    """

    name: str
    # A picture, uint8 (C, H, W); a clip, uint8 (C, T, H, W); sound, int16 (channels, samples);
    # motion, float32 (263, frames).
    raw_shape: tuple[int, ...]
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
    def class_names(self) -> tuple[str, ...]:
        """Of the data, which it opens; (): they have no classes, or no names of them."""
        return ()

    @property
    def stored_in(self) -> str | None:
        """What a person calls the folder whose latents stand in for samples; None: there are
        samples."""
        return None

    @property
    def data_set(self) -> str | None:
        """SHA-256 of what tells the samples to train on from others, which it opens; None: latents
        stand in for them, and what is recorded is of held-out samples, too, or nothing."""
        return None if self.stored_in else fingerprint_of(self.train_set(augment=False))

    @property
    def multi_label(self) -> bool:
        """Whether the condition is multi-hot (B, K) instead of ids (B,)."""
        return False

    text_encoder = None  # --text-encoder, of data with captions
    num_frames = frame_stride = None  # of clips
    rate = None  # of sound, in samples per second
    pads = False  # whether lengths differ, and batches have a mask
    choices_are = "classes"  # what a person calls `choices`
    held_out_labels = False  # whether samples have labels or captions of held-out data

    @property
    def image_size(self) -> int:
        """What --image-size is: pixels of a side, samples of a sound, frames of a motion."""
        return self.raw_shape[-1]

    @property
    def text_width(self) -> int:
        """Of the embedded texts that the model is conditioned on; 0: on none."""
        return 0

    @property
    def has_pictures(self) -> bool:
        """Whether samples are pictures (C, H, W)."""
        return len(self.raw_shape) == 3

    @property
    def identity(self) -> dict[str, Any]:
        """What made the model's inputs, as checkpoints keep it: plain data."""
        return self.codec.identity

    def unlike(self, key: str, was: Any, now: Any) -> str:
        """A sentence about another `identity` than then."""
        return (
            f"it was trained on latents with {key} {was}, but those of --vae {self.vae} have "
            f"{now}: give --vae the one it was trained with"
        )

    @property
    def conditions(self) -> dict[str, Any]:
        """What `chosen` and `condition` depend on besides the flags, for protocols: plain data.

        Raises:
            InputError: it is not at hand, and samples would be of nothing.
        """
        return {}

    @property
    def choices(self) -> int:
        """How many conditions a sample may be drawn with; 0: none."""
        return self.num_classes

    def chosen(self, numbers: Sequence[int], drawn: Tensor) -> Tensor:
        """The choices of samples by their numbers: those that were drawn at random (B,), unless an
        evaluation has an order of its own."""
        return drawn

    def condition(self, chosen: Tensor) -> Condition:
        """What the model is given for choices (B,): class ids are their numbers."""
        return {"y": chosen}

    def prompted(self, prompts: Sequence[str], frames: int | None) -> Condition:
        """What the model is given for words.

        Raises:
            InputError: it takes none, or not so many frames.
        """
        raise InputError(f"--prompts: {self.name} has no texts; give --class-labels")

    def titles(self, chosen: Tensor) -> list[str]:
        """What to write beside samples; nothing: []."""
        return []

    def labels(self, chosen: Tensor) -> np.ndarray:
        """arr_1 of a file of samples: class ids (N,), multi-hot labels (N, K), ..."""
        return self.condition(chosen)["y"].cpu().numpy()

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

    def save_grid(
        self, raw: Tensor, path: str | Path, *,
        cond: Condition | None = None, titles: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Decoded samples, drawn under `cond`, as a PNG sheet; where a sheet does not tell all, as
        other files beside it."""
        save_grid(raw, path)


def evenly_spaced(count: int, choices: int) -> list[int]:
    """So many of a domain's choices, over all that there are; zeros where there are none."""
    return [number * max(choices, 1) // count for number in range(count)]


def check_class_count(name: str, classes: int, num_classes: int | None) -> None:
    if num_classes and num_classes < classes:
        raise InputError(
            f"{name} has {classes} classes, but --num-classes is {num_classes}: "
            f"give {classes} or more, or 0 to train without classes"
        )
