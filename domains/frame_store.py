"""The store of whole videos' latents, a shard of which holds an image VAE's moments of some videos:

    moments  float16 (sum of frames, 2C, h, w)    mean beside deviation; see ragged_store.py
    lengths  int64 (n,)                           frames of each video
    labels   int64 (n,)                           classes, zeros where there are none

Every frame is there, so that clips of any number and stride of frames are cut in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError

from .clips import Cut
from .codecs import VAECodec
from .image_store import CROP
from .latents import StoredCodec, check_image_size
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
    shape_of,
    strings,
)
from .texts import NONE
from .video import FrameCodec, VideoDomain


@dataclass(frozen=True)
class FrameEncoding(RaggedEncoding):
    format: ClassVar = "layersync frames 1"
    prefix: ClassVar = "frames"
    unit: ClassVar = "video"
    fields: ClassVar = dict(
        codec=codec_of, dataset_name=str, count=int, held_out=int, class_names=strings,
        image_size=int, latent_shape=shape_of, shard_size=int, data_set=str, crop=str,
    )  # fmt: skip

    codec: dict[str, Any]
    dataset_name: str
    count: int
    held_out: int  # of the videos, the last ones
    class_names: tuple[str, ...]  # none: the labels are zeros
    image_size: int
    latent_shape: tuple[int, ...]  # of a frame, (C, h, w)
    shard_size: int
    data_set: str
    crop: str = CROP

    def check(self) -> None:
        super().check()
        if self.crop != CROP or len(self.latent_shape) != 3 or min(self.latent_shape) < 1:
            raise ValueError("another crop or shape than this version writes")

    @property
    def row(self) -> tuple[int, ...]:
        channels, *axes = self.latent_shape
        return (2 * channels, *axes)

    def arrays(self, shard: Shard, facts: Facts) -> Arrays:
        return super().arrays(shard, facts) | {"labels": ("I64", (shard.stop - shard.start,))}


class FrameEncoder(RaggedEncoder):
    """Videos from their first frame to their last; see encode.Encoder."""

    kind = FrameEncoding
    unread = ("num_frames", "frame_stride")

    def __init__(self, domain: VideoDomain, batch_size: int, device: torch.device) -> None:
        self.domain, self.chunk, self.codec = domain, batch_size, domain.codec.to(device).codec
        self.videos, self.held_out = both_parts(domain.clips)
        skip = domain.source.skip_corrupt
        self.samples = Whole(self.videos.whole, len(self.videos), "video", skip_corrupt=skip)

    def fingerprint(self) -> str:
        return self.videos.digest().hexdigest()

    def encoding(self, shard_size: int | None, data_set: str) -> FrameEncoding:
        domain = self.domain
        return FrameEncoding(
            codec=self.codec.identity, dataset_name=domain.name, count=len(self.videos),
            held_out=self.held_out, class_names=self.videos.class_names or (),
            image_size=domain.image_size, latent_shape=domain.source.frame_shape,
            shard_size=shard_size or SHARD_SIZE, data_set=data_set,
        )  # fmt: skip

    def path(self, index: int) -> str:
        return self.videos.name(index)

    def moments(self, raw: Tensor) -> Tensor:
        """float16 (T, 2C, h, w) of a video (C, T, H, W), a few frames at a time."""
        parts = raw.transpose(0, 1).split(self.chunk)
        return torch.cat([self.codec.encode(part).half().cpu() for part in parts])

    def besides(self, shard: Shard, parts: Sequence[Tensor]) -> Content:
        labels = torch.from_numpy(self.videos.labels[shard.start : shard.stop])
        return Content({"labels": labels}, {})


@dataclass(frozen=True)
class StoredVideos:
    """Some videos of a store, and how clips are cut from them: a ClipSource."""

    store: "FrameStore"
    numbers: np.ndarray  # int64 (N,), in the store
    cut: Cut
    class_names: tuple[str, ...] | None

    decodes = False  # frames are read from memory maps

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def labels(self) -> np.ndarray:
        if self.class_names is None:
            return np.zeros(len(self), dtype=np.int64)
        return self.store.labels[self.numbers]

    def check(self) -> None:
        """
        Raises:
            InputError: a video is shorter than a clip.
        """
        lengths = self.store.lengths[self.numbers]
        short = np.flatnonzero(lengths < self.cut.span)
        if len(short) and not self.cut.holds:
            name = self.store.paths[self.numbers[short[0]]]
            raise InputError(
                f"{self.store.stored_in}: {len(short)} of {len(self)} videos are too short; "
                f"{self.cut.too_long(name, lengths[short[0]])}"
            )

    def read(self, index: int, place: float) -> np.ndarray:
        """float16 (2C, T, h, w): of the frames that `clips.decoded` takes."""
        rows = self.store.rows(self.numbers[index])
        numbers = np.array(self.cut.numbers(len(rows), place))
        there = numbers[numbers < len(rows)]
        return rows[np.minimum(numbers, there[-1])].swapaxes(0, 1)

    def fingerprint(self) -> str:
        return f"{self.store.manifest.encoding.data_set} {tuple(self.cut)}"


class FrameStore(RaggedStore):
    """A finished store as a VideoSource.

    Raises:
        InputError: as RaggedStore, or it is of another VAE than was asked for.
    """

    skip_corrupt = False  # what could not be read is not in it

    def __init__(self, data_path: str, name: str, vae: str | None, cache_dir: str | None) -> None:
        super().__init__(data_path, FrameEncoding, name)
        self.cache_dir, encoding = cache_dir, self.manifest.encoding
        self.called, self.frame_shape = self.stored_in, encoding.latent_shape
        self.vae = decoding_vae(encoding.codec, self.stored_in, vae, cache_dir, VAECodec.load)

    @cached_property
    def codec(self) -> StoredCodec:
        identity = self.manifest.encoding.codec
        return StoredCodec(identity, self.vae, self.cache_dir, FrameCodec.load)

    @cached_property
    def labels(self) -> np.ndarray:
        labels, classes = self.array("labels"), len(self.manifest.encoding.class_names)
        if labels.min() < 0 or labels.max() >= max(classes, 1):
            raise InputError(
                f"{self.stored_in} has class ids {labels.min()} to {labels.max()}, but {classes} "
                "classes"
            )
        return labels

    def clips(self, cut: Cut, *, held_out: bool, labeled: bool) -> StoredVideos:
        names = self.manifest.encoding.class_names if labeled else ()
        found = StoredVideos(self, self.numbers(held_out=held_out), cut, names or None)
        found.check()
        return found


def is_store(folder: Path) -> bool:
    return has_shards(folder, FrameEncoding)


def videos(
    name: str, *, data_path: str, defaults: dict[str, Any], image_size: int | None = None,
    num_classes: int | None = None, vae: str | None = None, text_encoder: str | None = None,
    num_frames: int | None = None, frame_stride: int | None = None, cache_dir: str | None = None,
    **_,
) -> VideoDomain:  # fmt: skip
    """The domain of a store.

    Args:
        defaults: flags of the data set.

    Raises:
        InputError: flags that disagree with what is stored.
    """
    source = FrameStore(data_path, name, vae, cache_dir)
    size = source.manifest.encoding.image_size
    check_image_size(source.stored_in, size, image_size)
    if text_encoder not in (None, NONE):
        raise InputError(
            f"--text-encoder {text_encoder}: {source.stored_in} holds videos without their texts; "
            "encode.py --pretrained encodes clips with them"
        )
    cut = Cut(
        num_frames or defaults["num_frames"], frame_stride or defaults["frame_stride"],
        (size, size), holds=defaults.get("holds", False),
    )  # fmt: skip
    return VideoDomain.create(name, source, cut, defaults["fps"], num_classes)
