"""Music: random crops of tracks under several labels at once, in the latents of an Oobleck VAE.

Whether tracks are files (jamendo.py) or were encoded before (track_store.py), a `MusicSource` says.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.random import generator

from .codecs import Codec
from .decoding import Unreadable
from .domain import Batch, Condition, Domain
from .oobleck import OobleckConfig
from .order import Draws
from .sound import save_sounds
from .sources import sha256_over

SAMPLES = 441_000  # of a crop: 10 seconds


class Tracks(Protocol):
    labels: np.ndarray  # bool (N, K)
    vocabulary: tuple[str, ...]  # K
    decodes: bool  # see DataSet

    def __len__(self) -> int: ...

    def check(self, samples: int) -> None:
        """
        Raises:
            InputError: crops of so many samples are known to be impossible.
        """

    def crop(self, index: int, place: float, samples: int) -> np.ndarray:
        """What the codec's `to_input` or `encode` takes of a crop.

        Args:
            place: where it begins, from 0, the start, up to 1, as late as it still fits.

        Raises:
            Unreadable: the track is damaged, or shorter than that.
        """

    def fingerprint(self) -> str: ...


class MusicSource(Protocol):
    """Tracks, and the codec of crops of them; both are opened when first asked for."""

    stored_in: str | None  # see Domain
    at_hand: bool  # whether there are tracks; sampling needs none
    vae: str
    form: OobleckConfig
    vocabulary: tuple[str, ...]
    codec: Codec

    def tracks(self, *, held_out: bool) -> Tracks: ...


class Crops(torch.utils.data.Dataset):
    """A crop of a track, where its Draws say, and multi-hot tags (B, K).

    Raises:
        InputError: crops of so many samples are known to be impossible.
    """

    def __init__(self, found: Tracks, samples: int, *, labeled: bool) -> None:
        found.check(samples)
        self.source, self.samples, self.labeled = found, samples, labeled
        self.decodes = found.decodes

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def __getitems__(self, draws: Draws) -> Batch:
        crops = []
        for index, seed in zip(draws.index.tolist(), draws.seed.tolist(), strict=True):
            place = torch.rand((), generator=generator("cpu", "crop", seed, index)).item()
            try:
                crops.append(self.source.crop(index, place, self.samples))
            except Unreadable as error:
                return Batch.failed(str(error))
        labels = self.source.labels[draws.index]
        y = torch.from_numpy(labels).float() if self.labeled else torch.zeros(len(labels))
        index = torch.from_numpy(draws.index)
        return Batch(torch.from_numpy(np.stack(crops)), y, index, problems=[])


@dataclass(frozen=True)
class AudioDomain(Domain):
    """Crops of stereo music in the latents of an Oobleck VAE, under several labels at once."""

    source: MusicSource
    asked_classes: int | None = None  # None: as many as the data have
    held_out_labels: bool = False  # samples have labels of held-out tracks; else of the others

    @classmethod
    def create(
        cls, name: str, source: MusicSource, *, image_size: int, num_classes: int | None,
        held_out_labels: bool,
    ) -> "AudioDomain":  # fmt: skip
        """
        Args:
            image_size: samples of a crop.

        Raises:
            InputError: a crop shorter than a latent.
        """
        form = source.form
        length = image_size // form.hop
        if length < 1:
            raise InputError(
                f"--image-size {image_size}: a crop is {form.hop} samples or more, one latent"
            )
        raw_shape, shape = (form.audio_channels, image_size), (form.channels, length)
        return cls(name, raw_shape, shape, source.vae, source, num_classes, held_out_labels)

    @property
    def codec(self) -> Codec:
        return self.source.codec

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.source.form.rate

    @property
    def stored_in(self) -> str | None:
        return self.source.stored_in

    @property
    def multi_label(self) -> bool:
        return self.num_classes > 0

    @cached_property
    def train_tracks(self) -> Tracks:
        return self.tracks(held_out=False)

    @property
    def num_classes(self) -> int:
        if self.asked_classes is not None:
            return self.asked_classes
        return len(self.source.vocabulary)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.vocabulary

    @property
    def identity(self) -> dict[str, Any]:
        """With the vocabulary, where it is at hand: a row of the model's table means a tag."""
        if not (self.source.at_hand and self.multi_label):
            return self.codec.identity
        return self.codec.identity | {"labels": list(self.class_names)}

    def unlike(self, key: str, was: Any, now: Any) -> str:
        if key != "labels":
            return super().unlike(key, was, now)
        return (
            f"it was trained with other labels than those of {self.name} here: give --data-path "
            "the tags of then, whose names it keeps"
        )

    def train_set(self, *, augment: bool = True) -> Crops:
        return self.crops(self.train_tracks)

    def held_out_set(self) -> Crops:
        return self.crops(self.tracks(held_out=True))

    def crops(self, found: Tracks) -> Crops:
        return Crops(found, self.raw_shape[1], labeled=self.multi_label)

    def tracks(self, *, held_out: bool) -> Tracks:
        """
        Raises:
            InputError: they have another number of labels than the model.
        """
        found = self.source.tracks(held_out=held_out)
        if self.num_classes not in (0, len(found.vocabulary)):
            raise InputError(
                f"{self.name} has {len(found.vocabulary)} labels, not --num-classes "
                f"{self.num_classes}: leave it out, or give 0 for none"
            )
        return found

    @cached_property
    def rows(self) -> np.ndarray:
        """bool (choices, K): where the data are at hand, a sample gets the labels of a track of the
        part that it is scored beside; else one label."""
        if not self.source.at_hand:
            return np.eye(self.num_classes, dtype=bool)
        return self.tracks(held_out=self.held_out_labels).labels

    @property
    def conditions(self) -> dict[str, Any]:
        """Whose labels samples get; None: one label each."""
        if not self.source.at_hand:
            return {"labels": None}
        return {"labels": sha256_over(repr(self.rows.shape).encode(), np.packbits(self.rows))}

    @property
    def choices(self) -> int:
        return len(self.rows)

    @property
    def choices_are(self) -> str:
        return "tracks whose labels a sample may have" if self.source.at_hand else "labels"

    def condition(self, chosen: Tensor) -> Condition:
        if not self.multi_label:
            return {"y": torch.zeros_like(chosen)}
        rows = self.rows[chosen.cpu().numpy()]
        return {"y": torch.from_numpy(rows).float().to(chosen.device)}

    @property
    def rounding(self) -> dict[str, str]:
        return {"int16": "32768 x, rounded, clamped"}

    def arrays(self, raw: Tensor) -> np.ndarray:
        """int16 (B, samples, channels), as sound files have it."""
        return raw.transpose(1, 2).cpu().numpy()

    def save_grid(self, raw: Tensor, path: str | Path, **_) -> None:
        """A sheet of spectrograms, and NAME-00.wav, ... beside it."""
        save_sounds(raw, Path(path), self.rate)
