"""The store of whole tracks' latents, a shard of which holds the Oobleck's moments of some tracks:

    moments  float16 (sum of lengths, 2C)    track after track, mean beside deviation
    lengths  int64 (n,)                      latents of each track; 0: it was left out
    labels   bool (n, K)                     tags of the vocabulary

The tracks to train on come first, those that are held out last. In time order as they are, a crop
is one piece of a file.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError, LocalError

from .audio import SAMPLES, AudioDomain
from .decoding import Unreadable
from .domain import Batch
from .jamendo import Recordings
from .latents import StoredCodec
from .oobleck import CHUNK, OVERLAP, OobleckCodec, OobleckConfig
from .order import Draws
from .store import (
    Arrays,
    Content,
    Encoding,
    Facts,
    Manifest,
    Shard,
    codec_of,
    decoding_vae,
    has_shards,
)

SHARD_SIZE = 64  # tracks; those of MTG-Jamendo are about 86 MB


def form_of(plain: Sequence[int]) -> tuple[int, ...]:
    return OobleckConfig(*(int(part) for part in plain))


def strings(plain: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(part) for part in plain)


@dataclass(frozen=True)
class TrackEncoding(Encoding):
    format: ClassVar = "layersync tracks 1"
    prefix: ClassVar = "tracks"
    unit: ClassVar = "track"
    fields: ClassVar = dict(
        codec=codec_of, dataset_name=str, count=int, held_out=int, vocabulary=strings, form=form_of,
        shard_size=int, data_set=str, chunk=int, overlap=int,
    )  # fmt: skip
    facts: ClassVar = dict(paths=strings, left_out=strings, latents=int, sum=float, squares=float)

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
        if min(self.form) < 1 or not 0 < self.held_out < self.count:
            raise ValueError("sizes are 1 or more, and some of the tracks are held out")

    def arrays(self, shard: Shard, facts: Facts) -> Arrays:
        count = shard.stop - shard.start
        return {
            "moments": ("F16", (facts["latents"], 2 * self.form.channels)),
            "lengths": ("I64", (count,)),
            "labels": ("BOOL", (count, len(self.vocabulary))),
        }

    def totals(self, facts: Sequence[Facts]) -> dict[str, Any]:
        """Mean and deviation of draws from the posterior, over all channels: what a model is given,
        for this VAE has no scale."""
        count = max(sum(one["latents"] for one in facts), 1) * self.form.channels
        mean, square = (sum(one[name] for one in facts) / count for name in ("sum", "squares"))
        left_out = [path for one in facts for path in one["left_out"]]
        deviation = math.sqrt(max(square - mean * mean, 0.0))
        return {"mean": mean, "deviation": deviation, "left_out": left_out}

    def remarks(self, totals: dict[str, Any]) -> list[str]:
        mean, deviation, left_out = (totals[name] for name in ("mean", "deviation", "left_out"))
        lines = [
            f"latents have mean {mean:.3f} and deviation {deviation:.3f}; noise has 0 and 1, and "
            "training scales neither"
        ]
        if left_out:
            lines.append(f"unreadable and left out: {len(left_out)}, {left_out[0]} the first")
        return lines


class WholeTracks(torch.utils.data.Dataset):
    """A batch is one track, int16 (1, 2, samples); of one that is left out, nothing."""

    decodes = True

    def __init__(self, source: Recordings, least: int, *, skip_corrupt: bool) -> None:
        source.check(least)
        self.source, self.least, self.skip_corrupt = source, least, skip_corrupt

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, draws: Draws) -> Batch:
        (index,) = draws.index.tolist()
        try:
            sound, problems = self.read(index), []
        except Unreadable as error:
            if not self.skip_corrupt:
                return Batch.failed(f"{error}; --skip-corrupt goes on without such tracks")
            sound, problems = np.empty((2, 0), np.int16), [str(error)]
        labels = torch.from_numpy(self.source.labels[draws.index])
        return Batch(torch.from_numpy(sound)[None], labels, torch.from_numpy(draws.index), problems)

    def read(self, index: int) -> np.ndarray:
        sound = self.source.whole(index)
        if sound.shape[1] < self.least:
            raise Unreadable(f"{self.source.path(index)} is shorter than a latent")
        return sound


class TrackEncoder:
    """Tracks from start to end, those that are held out too; see encode.Encoder."""

    kind = TrackEncoding
    unread = ("image_size", "num_classes")

    def __init__(self, domain: AudioDomain, batch_size: int, device: torch.device) -> None:
        self.batch_size = 1  # whatever was asked for: they differ in length, and one fills a device
        self.domain, source = domain, domain.source
        self.form, self.codec = source.form, domain.codec.to(device)
        trained, held_out = (source.tracks(held_out=part) for part in (False, True))
        self.tracks, self.held_out = trained.followed_by(held_out), len(held_out)
        self.samples = WholeTracks(self.tracks, self.form.hop, skip_corrupt=source.skip_corrupt)

    def fingerprint(self) -> str:
        return self.tracks.fingerprint()

    def encoding(self, shard_size: int | None, data_set: str) -> TrackEncoding:
        return TrackEncoding(
            codec=self.codec.identity, dataset_name=self.domain.name, count=len(self.tracks),
            held_out=self.held_out, vocabulary=self.tracks.vocabulary, form=self.form,
            shard_size=shard_size or SHARD_SIZE, data_set=data_set,
        )  # fmt: skip

    def content(self, encoding: TrackEncoding, shard: Shard, batches: Iterable[Batch]) -> Content:
        paths = [path.decode() for path in self.tracks.paths[shard.start : shard.stop].tolist()]
        parts, labels = [], []
        facts = {"paths": paths, "left_out": [], "latents": 0, "sum": 0.0, "squares": 0.0}
        for path, batch in zip(paths, batches, strict=True):
            part = self.moments(batch)
            if not part.isfinite().all():
                raise LocalError(f"{path}: this VAE gives latents that are not finite in float16")
            mean, std = part.double().chunk(2, dim=1)
            facts["latents"] += len(part)
            facts["sum"] += mean.sum().item()
            facts["squares"] += (mean.square() + std.square()).sum().item()
            facts["left_out"] += [path] if batch.problems else []
            parts.append(part)
            labels.append(batch.y.cpu())
        lengths = torch.tensor([len(part) for part in parts])
        arrays = {"moments": torch.cat(parts), "lengths": lengths, "labels": torch.cat(labels)}
        return Content(arrays, facts)

    def moments(self, batch: Batch) -> Tensor:
        """float16 (T, 2C) of a track, on the CPU; of one that is left out, none."""
        if batch.problems:
            return torch.empty(0, 2 * self.form.channels, dtype=torch.float16)
        return self.codec.encode_track(batch.raw[0]).T.half().cpu()


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
        return np.concatenate([s["labels"] for s in self.store.manifest.shards])[self.numbers]

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
        number, length = self.numbers[index], samples // self.store.form.hop
        first = self.store.starts[number] + int(place * (self.store.lengths[number] - length + 1))
        shard = self.store.manifest.shards[number // self.store.manifest.encoding.shard_size]
        return np.ascontiguousarray(shard["moments"][first : first + length].T)

    def fingerprint(self) -> str:
        return self.store.manifest.encoding.data_set


class TrackStore:
    """A finished store as a MusicSource.

    Raises:
        InputError: it is not finished, no store of tracks, or of another VAE than was asked for.
    """

    at_hand = True

    def __init__(self, data_path: str, vae: str | None, cache_dir: str | None) -> None:
        self.stored_in, self.cache_dir = f"--data-path {data_path}", cache_dir
        self.manifest = Manifest(Path(data_path), TrackEncoding)
        encoding = self.manifest.encoding
        self.form, self.vocabulary = encoding.form, encoding.vocabulary
        self.vae = decoding_vae(encoding.codec, self.stored_in, vae, cache_dir, OobleckCodec.load)

    @cached_property
    def codec(self) -> StoredCodec:
        identity = self.manifest.encoding.codec
        return StoredCodec(identity, self.vae, self.cache_dir, OobleckCodec.load)

    @cached_property
    def paths(self) -> list[str]:
        return [path for entry in self.manifest.files.values() for path in entry.facts["paths"]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Latents of every track.

        Raises:
            InputError: they are not as many as there are.
        """
        for file, shard in zip(self.manifest.files, self.manifest.shards, strict=True):
            lengths, paths = shard["lengths"], self.manifest.files[file].facts["paths"]
            fit = lengths.sum() == len(shard["moments"]) and len(paths) == len(lengths)
            if lengths.min() < 0 or not fit:
                raise InputError(
                    f"{self.manifest.folder / file} has lengths that do not fit its latents"
                )
        return np.concatenate([shard["lengths"] for shard in self.manifest.shards])

    @cached_property
    def starts(self) -> np.ndarray:
        """The first latent of every track within its shard."""
        lengths = [shard["lengths"] for shard in self.manifest.shards]
        return np.concatenate([one.cumsum() - one for one in lengths])

    def tracks(self, *, held_out: bool) -> StoredTracks:
        """Those that were not left out.

        Raises:
            InputError: none of them.
        """
        first = self.manifest.encoding.count - self.manifest.encoding.held_out
        numbers = np.flatnonzero(self.lengths)
        chosen = numbers[(numbers >= first) == held_out]
        if not len(chosen):
            part = "held-out" if held_out else "training"
            raise InputError(f"{self.stored_in} has no {part} track: all were left out")
        return StoredTracks(self, chosen)


def is_store(folder: Path) -> bool:
    return has_shards(folder, TrackEncoding)


def music(
    name: str, *, data_path: str, image_size: int = SAMPLES, num_classes: int | None = None,
    vae: str | None = None, cache_dir: str | None = None,
) -> AudioDomain:  # fmt: skip
    """The domain of a store.

    Raises:
        InputError: it holds tracks of another data set.
    """
    source = TrackStore(data_path, vae, cache_dir)
    stored = source.manifest.encoding.dataset_name
    if name != stored:
        raise InputError(
            f"{source.stored_in} holds tracks of {stored}: give --dataset_name {stored}"
        )
    return AudioDomain.create(name, source, image_size=image_size, num_classes=num_classes)
