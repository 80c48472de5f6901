"""Videos with captions: Something-Something V2 for the pretrained networks of Wan and CogVideoX.

Whether clips are cut from files or were encoded before (clip_store.py), a `CaptionedSource` says.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from runtime.errors import InputError, LocalError
from runtime.untrusted import block_of

from .causal_vae import CausalVAECodec, layout_of
from .clips import Cut
from .codecs import Codec
from .decoding import Unreadable
from .domain import Batch, Condition, Domain
from .order import Draws, held_out_order
from .prompts import PromptEncoder, Prompts, embedded, fingerprint, width_of
from .sources import Where, given_folder
from .texts import NONE
from .video import (
    PARTS,
    ClipDomain,
    Clips,
    ClipSource,
    VideoFiles,
    Videos,
    read_ssv2,
    videos,
)

SSV2 = dict(image_size=256, vae="ema")  # without captions: a square, frame by frame
NOTHING = ""  # the caption of samples without one


class CaptionedClips(Clips):
    """Clips of videos, and their captions' vectors, bfloat16 (B, L, W)."""

    def __init__(
        self, source: ClipSource, captions: Sequence[str], prompts: Prompts, *, skip_corrupt: bool
    ) -> None:
        super().__init__(source, skip_corrupt=skip_corrupt)
        self.prompts = prompts
        try:
            self.captions = block_of(captions)
        except ValueError as error:
            raise InputError(f"the captions are {error}") from error

    def __getitems__(self, draws: Draws) -> Batch:
        batch = super().__getitems__(draws)
        if batch.error is not None:
            return batch
        try:
            texts = [self.prompts[self.captions[i].decode()] for i in batch.index.tolist()]
            cond = conditioned(texts, self.prompts[NOTHING], "cpu")
        except Unreadable as error:
            return Batch.failed(str(error), batch.problems)
        return batch._replace(**cond)


def conditioned(texts: Sequence[Tensor], null: Tensor, device: torch.device | str) -> Condition:
    """Vectors of texts, and beside each those of no text: two tensors of one shape (B, L, W)."""
    rows = pad_sequence([*texts, null], batch_first=True).to(device)
    return {"y": rows[:-1], "null": rows[-1:].expand(len(texts), -1, -1)}


class CaptionedSource(Protocol):
    """Clips under captions, and their codec; both are opened when first asked for."""

    stored_in: str | None  # see Domain
    vae: str
    latent_shape: tuple[int, ...]  # of a clip in the model's input, (C, frames, h, w)
    codec: Codec
    skip_corrupt: bool  # go on without unreadable videos
    test_captions: Sequence[str]  # of all of the validation part; none where no data are at hand

    def clips(self, cut: Cut, *, held_out: bool) -> tuple[ClipSource, Sequence[str]]:
        """Clips, and the caption of each."""


class CaptionedFolder:
    """Something-Something V2 as a CaptionedSource, encoded in the loop."""

    stored_in = None

    def __init__(
        self, name: str, vae: str, latent_shape: tuple[int, ...], *, image_size: int,
        data_path: str | None, cache_dir: str | None, skip_corrupt: bool,
    ) -> None:  # fmt: skip
        self.name, self.vae, self.latent_shape = name, vae, latent_shape
        self.image_size, self.data_path, self.cache_dir = image_size, data_path, cache_dir
        self.skip_corrupt = skip_corrupt

    @cached_property
    def codec(self) -> CausalVAECodec:
        return CausalVAECodec.load(self.vae, self.cache_dir)

    def entries(self, *, held_out: bool) -> list[tuple[Path, str]]:
        where = Where(self.name, self.data_path, self.image_size, labeled=False, held_out=held_out)
        return read_ssv2(given_folder(where), PARTS[held_out])

    def clips(self, cut: Cut, *, held_out: bool) -> tuple[VideoFiles, Sequence[str]]:
        paths, captions = zip(*self.entries(held_out=held_out), strict=True)
        return VideoFiles.of(Videos(Path(self.data_path), paths), cut), captions

    @cached_property
    def test_captions(self) -> list[str]:
        return [caption for _, caption in self.entries(held_out=True)] if self.data_path else []


def captioned(
    name: str, *, image_size: int | None, num_classes: int | None, vae: str, text_encoder: str,
    num_frames: int, frame_stride: int, fps: int, holds: bool, data_path: str | None,
    cache_dir: str | None, skip_corrupt: bool, device: torch.device | str, **_,
) -> "CaptionedVideoDomain":  # fmt: skip
    """The domain of files.

    Args:
        image_size: height of frames, whose proportions are those that the network was trained at;
            None: that network's.
        fps: of the videos.

    Raises:
        InputError: flags that do not go together, or a VAE that does not divide the clips.
    """
    layout = layout_of(vae, cache_dir)
    size = layout.size(image_size)
    source = CaptionedFolder(
        name, vae, layout.latents(vae, num_frames, size), image_size=size[0], data_path=data_path,
        cache_dir=cache_dir, skip_corrupt=skip_corrupt,
    )  # fmt: skip
    cut = Cut(num_frames, frame_stride, size, holds=holds)
    return CaptionedVideoDomain.create(
        name, source, cut, fps, num_classes, text_encoder, cache_dir, device
    )


@dataclass(frozen=True)
class CaptionedVideoDomain(ClipDomain):
    """Clips in the latents of their pipeline's causal VAE, under a caption."""

    source: CaptionedSource
    text_encoder: str = NONE
    cache_dir: str | None = None
    device: torch.device | str = "cpu"  # of the text encoder

    @classmethod
    def create(
        cls, name: str, source: CaptionedSource, cut: Cut, fps: int, num_classes: int | None,
        text_encoder: str, cache_dir: str | None, device: torch.device | str,
    ) -> "CaptionedVideoDomain":  # fmt: skip
        if num_classes:
            raise InputError(f"--num-classes {num_classes}: {name} has captions, not classes")
        raw_shape = (3, cut.frames, *cut.size)
        return cls(
            name, raw_shape, source.latent_shape, source.vae, source, cut, fps, text_encoder,
            cache_dir, device,
        )  # fmt: skip

    @property
    def image_size(self) -> int:
        return self.raw_shape[2]

    @property
    def num_classes(self) -> int:
        return 0

    @cached_property
    def text_width(self) -> int:
        return width_of(self.text_encoder, self.cache_dir)

    def prompts(self, captions: Sequence[str]) -> Prompts:
        return embedded([NOTHING, *captions], self.text_encoder, self.cache_dir, self.device)

    def train_set(self, *, augment: bool = True) -> CaptionedClips:
        return self.clips(held_out=False)

    def held_out_set(self) -> CaptionedClips:
        return self.clips(held_out=True)

    def clips(self, *, held_out: bool) -> CaptionedClips:
        clips, captions = self.source.clips(self.cut, held_out=held_out)
        prompts, skip = self.prompts(captions), self.source.skip_corrupt
        return CaptionedClips(clips, captions, prompts, skip_corrupt=skip)

    # Samples are drawn with captions of the validation part; a choice is the number of its entry.

    choices_are = "captions of the validation part"
    held_out_labels = True

    @cached_property
    def test_prompts(self) -> Prompts:
        return self.prompts(self.source.test_captions)

    @property
    def conditions(self) -> dict[str, Any]:
        """
        Raises:
            InputError: no data at hand, and so no captions.
        """
        if not self.choices:
            raise InputError(
                f"samples of {self.name} are drawn with the captions of its validation part: give "
                "--data-path"
            )
        digest = hashlib.sha256("\0".join(self.source.test_captions).encode())
        return {"captions": digest.hexdigest(), "text_encoder": fingerprint(self.text_encoder)}

    @property
    def choices(self) -> int:
        return len(self.source.test_captions)

    def chosen(self, numbers: Sequence[int], drawn: Tensor) -> Tensor:
        """Sample by sample through the validation part, in the order of all held-out data."""
        if not self.choices:
            return drawn
        turns = torch.tensor(list(numbers)) % self.choices
        return held_out_order(self.choices)[turns].to(drawn.device)

    def labels(self, chosen: Tensor) -> np.ndarray:
        """int64 (N,): numbers of entries of the validation list."""
        return chosen.cpu().numpy()

    def titles(self, chosen: Tensor) -> list[str]:
        return (
            [self.source.test_captions[number] for number in chosen.tolist()]
            if self.choices
            else []
        )

    def condition(self, chosen: Tensor) -> Condition:
        """
        Raises:
            LocalError: a file of the captions' vectors is damaged; another rank may read others.
        """
        texts = self.titles(chosen) or [NOTHING] * len(chosen)
        prompts = self.test_prompts
        try:
            vectors, null = [prompts[text] for text in texts], prompts[NOTHING]
        except Unreadable as error:
            raise LocalError(str(error)) from error
        return conditioned(vectors, null, chosen.device)

    def prompted(self, prompts: Sequence[str], frames: int | None) -> Condition:
        if frames not in (None, self.num_frames):
            raise InputError(f"--num-frames {frames}: the model makes {self.num_frames}")
        encoder = PromptEncoder.load(self.text_encoder, self.cache_dir, self.device)
        *texts, null = encoder([*prompts, NOTHING])
        return conditioned(texts, null, "cpu")


def ssv2_domain(
    name: str, *, image_size: int | None, vae: str | None, text_encoder: str, **rest
) -> Domain:
    """SSv2 with its captions, or (--text-encoder none) without.

    Raises:
        InputError: flags that do not go together.
    """
    if text_encoder == NONE:
        given = {"image_size": image_size or SSV2["image_size"], "vae": vae or SSV2["vae"]}
        return videos(name, **given, **rest)
    return captioned(
        name, image_size=image_size, vae=vae or text_encoder, text_encoder=text_encoder, **rest
    )
