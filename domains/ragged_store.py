"""What stores of samples of different lengths have in common: row after row, sample after sample.

    moments  float16 (sum of lengths, ...)   the VAE's
    lengths  int64 (n,)                      rows of each sample; 0: it was left out

A row is a latent of a track (track_store.py), a frame of a video (frame_store.py) or a clip
(clip_store.py). The samples to train on come first, those that are held out last.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError, LocalError

from .decoding import Unreadable
from .domain import Batch
from .order import Draws
from .sources import NoHeldOut
from .store import Arrays, Content, Encoding, Facts, Kinds, Manifest, Shard, strings

SHARD_SIZE = 64  # samples; of MTG-Jamendo's tracks or CLEVRER's videos about 100 MB


class RaggedEncoding(Encoding):
    facts: ClassVar[Kinds] = dict(paths=strings, left_out=strings, latents=int)

    held_out: int  # of the samples, the last ones

    @property
    @abstractmethod
    def row(self) -> tuple[int, ...]:
        """The shape of a row of `moments`."""

    def check(self) -> None:
        if not 0 <= self.held_out < self.count:
            raise ValueError("some of the samples are to train on")

    def arrays(self, shard: Shard, facts: Facts) -> Arrays:
        return {
            "moments": ("F16", (facts["latents"], *self.row)),
            "lengths": ("I64", (shard.stop - shard.start,)),
        }

    def totals(self, facts: Sequence[Facts]) -> dict[str, Any]:
        return {"left_out": [path for one in facts for path in one["left_out"]]}

    def remarks(self, totals: dict[str, Any]) -> list[str]:
        left_out = totals["left_out"]
        if not left_out:
            return []
        return [f"unreadable and left out: {len(left_out)}, {left_out[0]} the first"]


class Whole(torch.utils.data.Dataset):
    """A batch is one sample, whole; of one that is left out, nothing."""

    decodes = True

    def __init__(
        self, read: Callable[[int], np.ndarray], count: int, unit: str, *, skip_corrupt: bool
    ) -> None:
        self.read, self.count, self.unit, self.skip_corrupt = read, count, unit, skip_corrupt

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, draws: Draws) -> Batch:
        (index,) = draws.index.tolist()
        try:
            raw, problems = self.read(index), []
        except Unreadable as error:
            if not self.skip_corrupt:
                return Batch.failed(f"{error}; --skip-corrupt goes on without such {self.unit}s")
            raw, problems = np.empty(0), [str(error)]
        index = torch.from_numpy(draws.index)
        return Batch(torch.from_numpy(raw)[None], torch.zeros_like(index), index, problems)


def both_parts(opened: Callable[..., Any]) -> tuple[Any, int]:
    """The samples to train on, followed by those that are held out, and how many these are.

    Args:
        opened: a part, of held_out=False or True.
    """
    trained = opened(held_out=False)
    try:
        held_out = opened(held_out=True)
    except NoHeldOut:
        return trained, 0
    return trained.followed_by(held_out), len(held_out)


class RaggedEncoder(ABC):
    """Samples one by one, those that are held out too; see encode.Encoder."""

    batch_size = 1  # whatever was asked for: they differ in length, and one fills a device

    @abstractmethod
    def path(self, index: int) -> str:
        """What a person calls a sample."""

    @abstractmethod
    def moments(self, raw: Tensor) -> Tensor:
        """float16 (length, *row) of a sample, on the CPU."""

    @abstractmethod
    def besides(self, shard: Shard, parts: Sequence[Tensor]) -> Content:
        """What the shard holds besides its moments, which are in parts, one for each sample."""

    def content(self, encoding: RaggedEncoding, shard: Shard, batches: Iterable[Batch]) -> Content:
        paths = [self.path(index) for index in range(shard.start, shard.stop)]
        nothing = torch.empty(0, *encoding.row, dtype=torch.float16)
        parts, left_out = [], []
        for path, batch in zip(paths, batches, strict=True):
            part = nothing if batch.problems else self.moments(batch.raw[0])
            if not part.isfinite().all():
                raise LocalError(f"{path}: this VAE gives latents that are not finite in float16")
            left_out += [path] if batch.problems else []
            parts.append(part)
        moments = torch.cat(parts).contiguous()  # VAEs may have their channels last in memory
        lengths = torch.tensor([len(part) for part in parts])
        arrays, facts = self.besides(shard, parts)
        return Content(
            {"moments": moments, "lengths": lengths, **arrays},
            {"paths": paths, "left_out": left_out, "latents": len(moments), **facts},
        )


class RaggedStore:
    """A finished store, which is read sample by sample from memory maps.

    Args:
        name: the data set that was asked for.

    Raises:
        InputError: it is not finished, no store of this kind, or of another data set.
    """

    def __init__(self, data_path: str, kind: type[RaggedEncoding], name: str) -> None:
        self.stored_in = f"--data-path {data_path}"
        self.manifest = Manifest(Path(data_path), kind)
        stored = self.manifest.encoding.dataset_name
        if name != stored:
            raise InputError(
                f"{self.stored_in} holds {kind.unit}s of {stored}: give --dataset_name {stored}"
            )

    def facts(self, name: str) -> list:
        """A fact of every sample."""
        return [value for entry in self.manifest.files.values() for value in entry.facts[name]]

    def array(self, name: str) -> np.ndarray:
        """Of all samples."""
        return np.concatenate([shard[name] for shard in self.manifest.shards])

    @cached_property
    def paths(self) -> list[str]:
        return self.facts("paths")

    @cached_property
    def lengths(self) -> np.ndarray:
        """Rows of every sample.

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
        return self.array("lengths")

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of every sample within its shard."""
        lengths = [shard["lengths"] for shard in self.manifest.shards]
        return np.concatenate([one.cumsum() - one for one in lengths])

    @property
    def first_held_out(self) -> int:
        return self.manifest.encoding.count - self.manifest.encoding.held_out

    def numbers(self, *, held_out: bool) -> np.ndarray:
        """int64 (N,): the samples of a part that were not left out.

        Raises:
            NoHeldOut: there are none that are held out.
            InputError: all of them were left out.
        """
        unit = self.manifest.encoding.unit
        if held_out and not self.manifest.encoding.held_out:
            raise NoHeldOut(f"{self.stored_in} has no held-out {unit}")
        numbers = np.flatnonzero(self.lengths)
        chosen = numbers[(numbers >= self.first_held_out) == held_out]
        if not len(chosen):
            part = "held-out" if held_out else "training"
            raise InputError(f"{self.stored_in} has no {part} {unit}: all were left out")
        return chosen

    def rows(self, number: int) -> np.ndarray:
        """float16 (length, ...), mapped: the moments of a sample."""
        shard = self.manifest.shards[number // self.manifest.encoding.shard_size]
        first = self.starts[number]
        return shard["moments"][first : first + self.lengths[number]]
