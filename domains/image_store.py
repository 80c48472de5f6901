"""The store of images' latents, a shard of which holds the VAE's moments of some images:

    moments  float16 (n, 2, 2C, h, w)        [:, 0] of the images, [:, 1] of their mirror images
    labels   int64 (n,)                      classes, zeros where there are none

Moments are mean beside standard deviation, without scale and shift. The deviation and not its
logarithm, because rounding the logarithm is a relative error of the deviation itself. float16 and
not bfloat16: a mean of 10 is kept to 0.004 instead of 0.03, and an SD deviation is often smaller
than that. The mirror image is encoded on its own: a VAE does not commute with the flip, so the
mirrored latent is not the latent of the mirrored image.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError, LocalError

from .codecs import Codec, VAECodec
from .domain import Batch
from .images import ImageDomain
from .latents import MOST_CLASSES, StoredCodec
from .store import (
    MANIFEST,
    Arrays,
    Content,
    Encoding,
    Facts,
    Manifest,
    Shard,
    codec_of,
    decoding_vae,
    gather,
    has_shards,
    shape_of,
)

CROP = "ADM center crop"  # decoding.center_crop
FLIPS = 2
MOST_SIDE = 65_536  # pixels


@dataclass(frozen=True)
class ImageEncoding(Encoding):
    format: ClassVar = "layersync latents 1"
    prefix: ClassVar = "moments"
    unit: ClassVar = "image"
    fields: ClassVar = dict(
        codec=codec_of, dataset_name=str, count=int, num_classes=int, image_size=int,
        latent_shape=shape_of, shard_size=int, data_set=str, crop=str, flips=int,
    )  # fmt: skip
    facts: ClassVar = dict(replaced=int)  # unreadable images in whose place others were encoded

    codec: dict[str, Any]
    dataset_name: str
    count: int
    num_classes: int  # 0: the labels are zeros
    image_size: int
    latent_shape: tuple[int, ...]  # (C, h, w)
    shard_size: int
    data_set: str
    crop: str = CROP
    flips: int = FLIPS

    def check(self) -> None:
        if self.crop != CROP or self.flips != FLIPS or len(self.latent_shape) != 3:
            raise ValueError("another crop, number of flips or shape than this version writes")
        sizes = (self.image_size, *self.latent_shape)
        if min(sizes) < 1 or max(sizes) > MOST_SIDE or not 0 <= self.num_classes <= MOST_CLASSES:
            raise ValueError("sizes, classes and counts are 1 or more, and not absurd")

    @property
    def moments_shape(self) -> tuple[int, ...]:
        channels, *axes = self.latent_shape
        return (FLIPS, 2 * channels, *axes)

    def arrays(self, shard: Shard, facts: Facts) -> Arrays:
        count = shard.stop - shard.start
        return {"moments": ("F16", (count, *self.moments_shape)), "labels": ("I64", (count,))}


def content_of(moments: Tensor, labels: Tensor, replaced: int = 0) -> Content:
    """What a shard holds, of moments (n, 2, 2C, h, w) and classes (n,)."""
    return Content({"moments": moments, "labels": labels}, {"replaced": replaced})


class ImageEncoder:
    """Images and their mirror images; see encode.Encoder."""

    kind = ImageEncoding
    unread: tuple[str, ...] = ()

    def __init__(self, domain: ImageDomain, batch_size: int, device: torch.device) -> None:
        self.domain, self.batch_size = domain, batch_size
        self.samples, self.codec = domain.train_set(augment=False), domain.codec.to(device)

    def fingerprint(self) -> str:
        return self.domain.train_source.fingerprint()

    def encoding(self, shard_size: int | None, data_set: str) -> ImageEncoding:
        domain, count = self.domain, len(self.samples)
        return ImageEncoding(
            codec=self.codec.identity, dataset_name=domain.name, count=count,
            num_classes=domain.num_classes, image_size=domain.raw_shape[-1],
            latent_shape=domain.shape, shard_size=shard_size or default_shard_size(count),
            data_set=data_set,
        )  # fmt: skip

    def content(self, encoding: ImageEncoding, shard: Shard, batches: Iterable[Batch]) -> Content:
        count = shard.stop - shard.start
        moments = torch.empty(count, *encoding.moments_shape, dtype=torch.float16)
        labels = torch.empty(count, dtype=torch.int64)
        done = replaced = 0
        for batch in batches:
            replaced += len(batch.problems)
            stop = done + len(batch.raw)
            part = both_flips(self.codec, batch.raw).cpu()
            if not part.isfinite().all():
                raise LocalError(
                    f"images {shard.start + done} to {shard.start + stop - 1}: this VAE gives "
                    "latents that are not finite in float16"
                )
            moments[done:stop], labels[done:stop] = part, batch.y.cpu()
            done = stop
        return content_of(moments, labels, replaced)


def default_shard_size(count: int) -> int:
    """Enough shards for hundreds of processes, of files that are neither tiny nor above 1 GB."""
    return min(max(math.ceil(count / 512), 256), 16_384)


def both_flips(codec: Codec, raw: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float16 (B, 2, 2C, h, w): of the images and of their mirror images."""
    return torch.stack([codec.encode(raw), codec.encode(raw.flip(-1))], dim=1).half()


class MomentStore:
    """A finished store as a LatentSource."""

    mirrors = True
    decodes = False  # a gather from memory maps

    def __init__(self, data_path: str, image_size: int | None = None) -> None:
        self.called = f"--data-path {data_path}"
        self.manifest = Manifest(Path(data_path), ImageEncoding)
        encoding = self.manifest.encoding
        self.shape, self.image_size = encoding.latent_shape, encoding.image_size
        self.num_classes, self.shard_size = encoding.num_classes, encoding.shard_size
        self.identity, self.made_of = encoding.codec, encoding.data_set

    def __len__(self) -> int:
        return self.manifest.encoding.count

    def fingerprint(self) -> str:
        return self.made_of

    @cached_property
    def labels(self) -> np.ndarray:
        labels = np.concatenate([shard["labels"] for shard in self.manifest.shards])
        if labels.min() < 0 or labels.max() >= max(self.num_classes, 1):
            raise InputError(
                f"{self.called} has class ids {labels.min()} to {labels.max()}, but its "
                f"{MANIFEST} says {self.num_classes} classes"
            )
        return labels

    @cached_property
    def moments(self) -> list[np.ndarray]:
        return [shard["moments"] for shard in self.manifest.shards]

    def gather(self, index: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shard, row = np.divmod(index, self.shard_size)
        return gather(self.moments, shard, row, flipped.astype(np.int64)), self.labels[index]

    def vae(self, asked: str | None, cache_dir: str | None) -> str:
        return decoding_vae(self.identity, self.called, asked, cache_dir, VAECodec.load)

    def codec(self, vae: str, cache_dir: str | None) -> StoredCodec:
        return StoredCodec(self.identity, vae, cache_dir)


def is_store(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or has_shards(folder, ImageEncoding)
