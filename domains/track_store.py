"""The store of whole tracks' latents, a shard of which holds the Oobleck's moments of some tracks:

    moments  float16 (sum of lengths, 2C)    mean beside deviation; see ragged_store.py
    lengths  int64 (n,)
    labels   bool (n, K)                     tags of the vocabulary

In time order as they are, a crop is one piece of a file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError

from .audio import SAMPLES, AudioDomain
from .decoding import Unreadable
from .jamendo import Recordings
from .latents import StoredCodec
from .oobleck import CHUNK, OVERLAP, OobleckCodec, OobleckConfig, check_form
from .ragged_store import (
    SHARD_SIZE,
    RaggedEncoder,
    RaggedEncoding,
    RaggedStore,
    Whole,
    both_parts,
)
from .store import (
    Arrays,
    Content,
    Facts,
    Shard,
    codec_of,
    decoding_vae,
    has_shards,
    strings,
)


def form_of(plain: Sequence[int]) -> OobleckConfig:
    return OobleckConfig(*(int(part) for part in plain))


@dataclass(frozen=True)
class TrackEncoding(RaggedEncoding):
    format: ClassVar = "layersync tracks 1"
    prefix: ClassVar = "tracks"
    unit: ClassVar = "track"
    fields: ClassVar = dict(
        codec=codec_of, dataset_name=str, count=int, held_out=int, vocabulary=strings, form=form_of,
        shard_size=int, data_set=str, chunk=int, overlap=int,
    )  # fmt: skip
    facts: ClassVar = RaggedEncoding.facts | dict(sum=float, squares=float)

    codec: dict[str, Any]
    dataset_name: str
    count: int
    held_out: int  # of the tracks, the last ones
    vocabulary: tuple[str, ...]
    form: OobleckConfig
    shard_size: int
    data_set: str
    chunk: int = CHUNK
    overlap: int = OVERLAP

    def check(self) -> None:
        super().check()
        check_form(self.form)

    @property
    def row(self) -> tuple[int]:
        return (2 * self.form.channels,)

    def arrays(self, shard: Shard, facts: Facts) -> Arrays:
        labels = ("BOOL", (shard.stop - shard.start, len(self.vocabulary)))
        return super().arrays(shard, facts) | {"labels": labels}

    def totals(self, facts: Sequence[Facts]) -> dict[str, Any]:
        """Mean and deviation of draws from the posterior, over all channels: what a model is given,
        for this VAE has no scale."""
        count = max(sum(one["latents"] for one in facts), 1) * self.form.channels
        mean, square = (sum(one[name] for one in facts) / count for name in ("sum", "squares"))
        deviation = math.sqrt(max(square - mean * mean, 0.0))
        return {"mean": mean, "deviation": deviation} | super().totals(facts)

    def remarks(self, totals: dict[str, Any]) -> list[str]:
        said = (
            f"latents have mean {totals['mean']:.3f} and deviation {totals['deviation']:.3f}; "
            "noise has 0 and 1, and training scales neither"
        )
        return [said, *super().remarks(totals)]


def read_track(tracks: Recordings, least: int, index: int) -> np.ndarray:
    """int16 (2, samples) from start to end.

    Raises:
        Unreadable: damaged, or shorter than `least` samples.
    """
    sound = tracks.whole(index)
    if sound.shape[1] < least:
        raise Unreadable(f"{tracks.path(index)} is shorter than a latent")
    return sound


class TrackEncoder(RaggedEncoder):
    """Tracks from start to end; see encode.Encoder."""

    kind = TrackEncoding
    unread = ("image_size", "num_classes")

    def __init__(self, domain: AudioDomain, batch_size: int, device: torch.device) -> None:
        self.domain, source = domain, domain.source
        self.form, self.codec = source.form, domain.codec.to(device)
        self.tracks, self.held_out = both_parts(source.tracks)
        self.tracks.check(self.form.hop)
        read = partial(read_track, self.tracks, self.form.hop)
        self.samples = Whole(read, len(self.tracks), "track", skip_corrupt=source.skip_corrupt)

    def fingerprint(self) -> str:
        return self.tracks.fingerprint()

    def encoding(self, shard_size: int | None, data_set: str) -> TrackEncoding:
        return TrackEncoding(
            codec=self.codec.identity, dataset_name=self.domain.name, count=len(self.tracks),
            held_out=self.held_out, vocabulary=self.tracks.vocabulary, form=self.form,
            shard_size=shard_size or SHARD_SIZE, data_set=data_set,
        )  # fmt: skip

    def path(self, index: int) -> str:
        return self.tracks.paths[index].decode()

    def moments(self, raw: Tensor) -> Tensor:
        """float16 (T, 2C) of a track, on the CPU."""
        return self.codec.encode_track(raw).T.half().cpu()

    def besides(self, shard: Shard, parts: Sequence[Tensor]) -> Content:
        total = squares = 0.0
        for part in parts:
            mean, std = part.double().chunk(2, dim=1)
            total += mean.sum().item()
            squares += (mean.square() + std.square()).sum().item()
        labels = torch.from_numpy(self.tracks.labels[shard.start : shard.stop])
        return Content({"labels": labels}, {"sum": total, "squares": squares})


@dataclass(frozen=True)
class StoredTracks:
    """Some tracks of a store."""

    store: "TrackStore"
    numbers: np.ndarray  # int64 (N,), in the store

    decodes = False  # crops are read from memory maps

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self.store.vocabulary

    @cached_property
    def labels(self) -> np.ndarray:
        return self.store.array("labels")[self.numbers]

    def check(self, samples: int) -> None:
        """
        Raises:
            InputError: a track is shorter than that.
        """
        lengths, form = self.store.lengths[self.numbers], self.store.form
        short = np.flatnonzero(lengths < samples // form.hop)
        if len(short):
            seconds = [count / form.rate for count in (lengths[short[0]] * form.hop, samples)]
            raise InputError(
                f"{self.store.stored_in}: {len(short)} of {len(self)} tracks are shorter than a "
                f"crop of {seconds[1]:.1f} s, {self.path(short[0])} of {seconds[0]:.1f} s the "
                f"first: give --image-size {lengths.min() * form.hop} or less"
            )

    def path(self, index: int) -> str:
        return self.store.paths[self.numbers[index]]

    def crop(self, index: int, place: float, samples: int) -> np.ndarray:
        """float16 (2C, samples // hop)."""
        rows, length = self.store.rows(self.numbers[index]), samples // self.store.form.hop
        first = int(place * (len(rows) - length + 1))
        return np.ascontiguousarray(rows[first : first + length].T)

    def fingerprint(self) -> str:
        return self.store.manifest.encoding.data_set


class TrackStore(RaggedStore):
    """A finished store as a MusicSource.

    Raises:
        InputError: as RaggedStore, or it is of another VAE than was asked for.
    """

    at_hand = True

    def __init__(self, data_path: str, name: str, vae: str | None, cache_dir: str | None) -> None:
        super().__init__(data_path, TrackEncoding, name)
        self.cache_dir, encoding = cache_dir, self.manifest.encoding
        self.form, self.vocabulary = encoding.form, encoding.vocabulary
        self.vae = decoding_vae(encoding.codec, self.stored_in, vae, cache_dir, OobleckCodec.load)

    @cached_property
    def codec(self) -> StoredCodec:
        identity = self.manifest.encoding.codec
        return StoredCodec(identity, self.vae, self.cache_dir, OobleckCodec.load)

    def tracks(self, *, held_out: bool) -> StoredTracks:
        """Those that were not left out."""
        return StoredTracks(self, self.numbers(held_out=held_out))


def is_store(folder: Path) -> bool:
    return has_shards(folder, TrackEncoding)


def music(
    name: str, *, data_path: str, defaults: dict[str, Any], image_size: int = SAMPLES,
    num_classes: int | None = None, vae: str | None = None, cache_dir: str | None = None, **_,
) -> AudioDomain:  # fmt: skip
    """The domain of a store.

    Args:
        defaults: what the data set's row says.
    """
    source = TrackStore(data_path, name, vae, cache_dir)
    return AudioDomain.create(
        name, source, image_size=image_size, num_classes=num_classes,
        held_out_labels=defaults["held_out_labels"],
    )  # fmt: skip
