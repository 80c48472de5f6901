"""The store of captioned clips' latents, a shard of which holds a causal VAE's of some clips:

    moments  float16 (clips, kC, frames, h, w)    means, beside deviations for CogVideoX alone
    lengths  int64 (n,)                           1; see ragged_store.py

Of every video there is one clip, because a causal VAE's latents of a frame depend on the frames
before it. It begins where a draw of seed 0 says, as clips do that are read to evaluate on. Captions
are facts of a shard; their vectors are in the cache of prompts.py, whatever the store.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError

from .captioned_video import CaptionedVideoDomain
from .causal_vae import CausalVAECodec, Units, layout_of
from .clips import Cut
from .image_store import CROP
from .latents import StoredCodec, check_image_size
from .ragged_store import SHARD_SIZE, RaggedEncoder, RaggedEncoding, RaggedStore, Whole
from .store import Content, Shard, decoding_vae, has_shards, shape_of, strings
from .texts import NONE
from .video import VideoFiles, place_of

SEED = 0  # of the draw of every video


def codec_of(plain: dict[str, Any]) -> dict[str, Any]:
    name, sha256 = str(plain["name"]), str(plain["sha256"])
    scale, shift = ([float(value) for value in plain[key]] for key in ("scale", "shift"))
    return {"name": name, "scale": scale, "shift": shift, "sha256": sha256}


@dataclass(frozen=True)
class ClipEncoding(RaggedEncoding):
    format: ClassVar = "layersync clips 1"
    prefix: ClassVar = "clips"
    unit: ClassVar = "clip"
    fields: ClassVar = dict(
        codec=codec_of, vae_class=str, draws=bool, dataset_name=str, count=int, held_out=int,
        num_frames=int, frame_stride=int, size=shape_of, holds=bool, latent_shape=shape_of,
        shard_size=int, data_set=str, crop=str,
    )  # fmt: skip
    facts: ClassVar = RaggedEncoding.facts | dict(captions=strings)

    codec: dict[str, Any]
    vae_class: str  # in diffusers
    draws: bool  # whether deviations are beside the means
    dataset_name: str
    count: int
    held_out: int  # of the clips, the last ones
    num_frames: int
    frame_stride: int
    size: tuple[int, ...]  # height and width
    holds: bool  # see Cut
    latent_shape: tuple[int, ...]  # (C, frames, h, w)
    shard_size: int
    data_set: str
    crop: str = CROP

    def check(self) -> None:
        super().check()
        shapes = (*self.size, *self.latent_shape, self.num_frames, self.frame_stride)
        if self.crop != CROP or len(self.size) != 2 or len(self.latent_shape) != 4:
            raise ValueError("another crop or shape than this version writes")
        if min(shapes) < 1 or any(
            len(self.codec[key]) not in (1, self.latent_shape[0]) for key in ("scale", "shift")
        ):
            raise ValueError("sizes are 1 or more, scale and shift of each channel or of all")

    @property
    def row(self) -> tuple[int, ...]:
        channels, *axes = self.latent_shape
        return ((1 + self.draws) * channels, *axes)

    @property
    def cut(self) -> Cut:
        return Cut(self.num_frames, self.frame_stride, self.size, holds=self.holds)


def read_clip(videos: VideoFiles, first_held_out: int, index: int) -> np.ndarray:
    """uint8 (3, T, H, W): where a draw of its part of the data says."""
    own = index if index < first_held_out else index - first_held_out
    return videos.read(index, place_of(SEED, own))


class ClipEncoder(RaggedEncoder):
    """A clip of every video; see encode.Encoder."""

    kind = ClipEncoding
    unread = ()

    def __init__(self, domain: CaptionedVideoDomain, batch_size: int, device: torch.device) -> None:
        self.domain, self.codec, source = domain, domain.codec.to(device), domain.source
        (trained, captions), (held_out, others) = (
            source.clips(domain.cut, held_out=part) for part in (False, True)
        )
        self.videos, self.captions = trained.followed_by(held_out), (*captions, *others)
        self.held_out = len(held_out)
        read = partial(read_clip, self.videos, len(trained))
        self.samples = Whole(read, len(self.videos), "video", skip_corrupt=source.skip_corrupt)

    def fingerprint(self) -> str:
        said = [self.videos.fingerprint(), *self.captions]
        return hashlib.sha256("\0".join(said).encode()).hexdigest()

    def encoding(self, shard_size: int | None, data_set: str) -> ClipEncoding:
        domain, cut = self.domain, self.domain.cut
        return ClipEncoding(
            codec=self.codec.identity, vae_class=layout_of(domain.vae, domain.cache_dir).kind,
            draws=self.codec.uses_noise, dataset_name=domain.name, count=len(self.videos),
            held_out=self.held_out, num_frames=cut.frames, frame_stride=cut.stride, size=cut.size,
            holds=cut.holds, latent_shape=domain.shape, shard_size=shard_size or SHARD_SIZE,
            data_set=data_set,
        )  # fmt: skip

    def path(self, index: int) -> str:
        return self.videos.name(index)

    def moments(self, raw: Tensor) -> Tensor:
        """float16 (1, kC, frames, h, w) of a clip (3, T, H, W), on the CPU."""
        return self.codec.encode(raw[None]).half().cpu()

    def besides(self, shard: Shard, parts: Sequence[Tensor]) -> Content:
        return Content({}, {"captions": self.captions[shard.start : shard.stop]})


class StoredClipCodec(StoredCodec):
    """As StoredCodec, in the units of a causal VAE."""

    def __init__(self, encoding: ClipEncoding, name: str, cache_dir: str | None) -> None:
        identity = encoding.codec
        super().__init__(identity, name, cache_dir, CausalVAECodec.load)
        self.uses_noise = encoding.draws
        self.units = Units(identity["shift"], identity["scale"], draws=encoding.draws)

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        return self.units.to_input(stored, noise)

    def to(self, device: torch.device | str) -> "StoredClipCodec":
        self.units.to(device)
        return super().to(device)


@dataclass(frozen=True)
class StoredClips:
    """Some clips of a store: a ClipSource without classes."""

    store: "ClipStore"
    numbers: np.ndarray  # int64 (N,), in the store

    class_names = None
    decodes = False  # clips are read from memory maps

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self), dtype=np.int64)

    def read(self, index: int, place: float) -> np.ndarray:
        """float16 (kC, frames, h, w): there is one, wherever it was to begin."""
        return self.store.rows(self.numbers[index])[0]

    def fingerprint(self) -> str:
        return self.store.manifest.encoding.data_set


class ClipStore(RaggedStore):
    """A finished store as a CaptionedSource.

    Raises:
        InputError: as RaggedStore, or it is of another VAE than was asked for.
    """

    skip_corrupt = False  # what could not be read is not in it

    def __init__(self, data_path: str, name: str, vae: str | None, cache_dir: str | None) -> None:
        super().__init__(data_path, ClipEncoding, name)
        self.cache_dir, encoding = cache_dir, self.manifest.encoding
        self.latent_shape = encoding.latent_shape
        self.vae = decoding_vae(encoding.codec, self.stored_in, vae, cache_dir, CausalVAECodec.load)

    @cached_property
    def codec(self) -> StoredClipCodec:
        return StoredClipCodec(self.manifest.encoding, self.vae, self.cache_dir)

    @cached_property
    def captions(self) -> list[str]:
        """Of all clips, those that were left out too."""
        captions, count = self.facts("captions"), self.manifest.encoding.count
        if len(captions) != count or self.lengths.max() > 1:
            raise InputError(f"{self.stored_in} has no caption for each of its {count} clips")
        return captions

    @property
    def test_captions(self) -> list[str]:
        return self.captions[self.first_held_out :]

    def clips(self, cut: Cut, *, held_out: bool) -> tuple[StoredClips, list[str]]:
        numbers = self.numbers(held_out=held_out)
        return StoredClips(self, numbers), [self.captions[number] for number in numbers]


def is_store(folder: Path) -> bool:
    return has_shards(folder, ClipEncoding)


def captioned(
    name: str, *, data_path: str, defaults: dict[str, Any], pretrained: str | None = None,
    image_size: int | None = None, num_classes: int | None = None, vae: str | None = None,
    text_encoder: str = NONE, num_frames: int | None = None, frame_stride: int | None = None,
    cache_dir: str | None = None, device: torch.device | str = "cpu", **_,
) -> CaptionedVideoDomain:  # fmt: skip
    """The domain of a store.

    Args:
        defaults: flags of the data set.

    Raises:
        InputError: flags or a network that disagree with what is stored.
    """
    source = ClipStore(data_path, name, vae, cache_dir)
    encoding, called = source.manifest.encoding, source.stored_in
    check_image_size(called, encoding.size[0], image_size)
    for flag, asked in (("num_frames", num_frames), ("frame_stride", frame_stride)):
        stored = getattr(encoding, flag)
        if asked not in (None, stored):
            flag = flag.replace("_", "-")
            raise InputError(f"--{flag} {asked}, but {called} holds clips of --{flag} {stored}")
    if text_encoder == NONE:
        raise InputError(
            f"{called} holds clips under captions: name the network that reads them (--model, "
            "--pretrained) or a --text-encoder"
        )
    check_network(pretrained, encoding, called, cache_dir)
    return CaptionedVideoDomain.create(
        name, source, encoding.cut, defaults["fps"], num_classes, text_encoder, cache_dir, device
    )


def check_network(
    pretrained: str | None, encoding: ClipEncoding, called: str, cache_dir: str | None
) -> None:
    """
    Raises:
        InputError: a network that knows the latents of another kind of VAE.
    """
    if pretrained is None:
        return
    try:
        kind = layout_of(pretrained, cache_dir).kind
    except InputError:  # the folder of a network alone, which does not say
        return
    if kind != encoding.vae_class:
        raise InputError(
            f"{called} holds latents of an {encoding.vae_class}, and --pretrained {pretrained} has "
            f"an {kind}: encode clips for it"
        )
