"""Videos with captions: Something-Something V2 for the pretrained networks of Wan and CogVideoX."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from runtime.errors import InputError
from runtime.random import generator

from .causal_vae import CausalVAECodec, layout_of
from .clips import Cut, save_clips
from .decoding import Unreadable
from .domain import Batch, Condition, Domain
from .order import Draws
from .prompts import PromptEncoder, Prompts, embedded, width_of
from .sources import Where, given_folder
from .texts import NONE
from .video import PARTS, ClipSource, VideoDomain, Videos, read_ssv2

SSV2 = dict(image_size=256, vae="ema")  # without captions: a square, frame by frame
NOTHING = ""  # the caption of samples without one


class CaptionedClips(torch.utils.data.Dataset):
    """Clips of videos, where their Draws say, and their captions' vectors: uint8 (B, 3, T, H, W),
    bfloat16 (B, L, W)."""

    decodes = True

    def __init__(self, source: ClipSource, captions: Sequence[str], prompts: Prompts) -> None:
        self.source, self.prompts = source, prompts
        self.captions = np.array([caption.encode() for caption in captions])

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, draws: Draws) -> Batch:
        clips, texts = [], []
        try:
            for index, seed in zip(draws.index.tolist(), draws.seed.tolist(), strict=True):
                place = torch.rand((), generator=generator("cpu", "clip", seed, index)).item()
                clips.append(self.source.read(index, place))
                texts.append(self.prompts[self.captions[index].decode()])
            cond = conditioned(texts, self.prompts[NOTHING], "cpu")
        except Unreadable as error:
            return Batch.failed(str(error))
        raw, index = torch.from_numpy(np.stack(clips)), torch.from_numpy(draws.index)
        return Batch(raw, cond["y"], index, problems=[], null=cond["null"])


def conditioned(texts: Sequence[Tensor], null: Tensor, device: torch.device | str) -> Condition:
    """Vectors of texts, and beside each those of no text: two tensors of one shape (B, L, W)."""
    rows = pad_sequence([*texts, null], batch_first=True).to(device)
    return {"y": rows[:-1], "null": rows[-1:].expand(len(texts), -1, -1)}


@dataclass(frozen=True)
class CaptionedVideoDomain(Domain):
    """Clips in the latents of their pipeline's causal VAE, under a caption."""

    cut: Cut
    text_encoder: str = NONE
    data_path: str | None = None
    cache_dir: str | None = None

    @classmethod
    def create(
        cls, name: str, *, image_size: int | None, num_classes: int | None, vae: str,
        text_encoder: str, num_frames: int, frame_stride: int, holds: bool,
        data_path: str | None, cache_dir: str | None, **_,
    ) -> "CaptionedVideoDomain":  # fmt: skip
        """
        Args:
            image_size: height of frames, whose proportions are those that the network was trained
                at; None: that network's.

        Raises:
            InputError: flags that do not go together, or a VAE that does not divide the clips.
        """
        if num_classes:
            raise InputError(f"--num-classes {num_classes}: {name} has captions, not classes")
        layout = layout_of(vae, cache_dir)
        size = layout.size(image_size)
        return cls(
            name, (3, num_frames, *size), layout.latents(vae, num_frames, size), vae,
            Cut(num_frames, frame_stride, size, holds=holds), text_encoder, data_path, cache_dir,
        )  # fmt: skip

    @property
    def image_size(self) -> int:
        return self.raw_shape[2]

    @property
    def num_frames(self) -> int:
        return self.cut.frames

    @property
    def frame_stride(self) -> int:
        return self.cut.stride

    @property
    def num_classes(self) -> int:
        return 0

    @cached_property
    def codec(self) -> CausalVAECodec:
        return CausalVAECodec.load(self.vae, self.cache_dir)

    @cached_property
    def text_width(self) -> int:
        return width_of(self.text_encoder, self.cache_dir)

    def prompts(self, captions: Sequence[str]) -> Prompts:
        return embedded([NOTHING, *captions], self.text_encoder, self.cache_dir)

    def entries(self, *, held_out: bool) -> list[tuple[Path, str]]:
        where = Where(self.name, self.data_path, self.image_size, labeled=False, held_out=held_out)
        return read_ssv2(given_folder(where), PARTS[held_out])

    def train_set(self, *, augment: bool = True) -> CaptionedClips:
        return self.clips(self.entries(held_out=False))

    def held_out_set(self) -> CaptionedClips:
        return self.clips(self.entries(held_out=True))

    def clips(self, entries: Sequence[tuple[Path, str]]) -> CaptionedClips:
        paths, captions = zip(*entries, strict=True)
        source = ClipSource(Videos(Path(self.data_path), paths), self.cut)
        return CaptionedClips(source, captions, self.prompts(captions))

    # Samples are drawn with captions of the validation part; a choice is the number of its entry.

    @cached_property
    def test_captions(self) -> list[str]:
        return [caption for _, caption in self.entries(held_out=True)] if self.data_path else []

    @cached_property
    def test_prompts(self) -> Prompts:
        return self.prompts(self.test_captions)

    @property
    def choices(self) -> int:
        return len(self.test_captions)

    def chosen(self, numbers: Sequence[int], drawn: Tensor) -> Tensor:
        """Sample by sample through the validation part, in one random order for all models."""
        if not self.choices:
            return drawn
        order = torch.randperm(self.choices, generator=generator("cpu", "captions"))
        return order[torch.tensor(list(numbers)) % self.choices].to(drawn.device)

    def labels(self, chosen: Tensor) -> np.ndarray:
        """int64 (N,): numbers of entries of the validation list."""
        return chosen.cpu().numpy()

    def titles(self, chosen: Tensor) -> list[str]:
        return [self.test_captions[number] for number in chosen.tolist()] if self.choices else []

    def condition(self, chosen: Tensor) -> Condition:
        texts = self.titles(chosen) or [NOTHING] * len(chosen)
        prompts = self.test_prompts
        return conditioned([prompts[text] for text in texts], prompts[NOTHING], chosen.device)

    def prompted(self, prompts: Sequence[str], frames: int | None) -> Condition:
        if frames not in (None, self.num_frames):
            raise InputError(f"--num-frames {frames}: the model makes {self.num_frames}")
        encoder = PromptEncoder.load(self.text_encoder, self.cache_dir)
        *texts, null = encoder([*prompts, NOTHING])
        return conditioned(texts, null, "cpu")

    def arrays(self, raw: Tensor) -> np.ndarray:
        """uint8 (B, T, H, W, C)."""
        return raw.permute(0, 2, 3, 4, 1).cpu().numpy()

    def save_grid(self, raw: Tensor, path: str | Path, **_) -> None:
        """A row of frames per clip, and the clips beside each other as an mp4, NAME.mp4."""
        save_clips(raw, Path(path))


def ssv2_domain(
    name: str, *, image_size: int | None, vae: str | None, text_encoder: str, **rest
) -> Domain:
    """SSv2 with its captions, or (--text-encoder none) without.

    Raises:
        InputError: flags that do not go together.
    """
    if text_encoder == NONE:
        given = {"image_size": image_size or SSV2["image_size"], "vae": vae or SSV2["vae"]}
        return VideoDomain.create(name, **given, **rest)
    vae = vae or text_encoder
    return CaptionedVideoDomain.create(
        name, image_size=image_size, vae=vae, text_encoder=text_encoder, **rest
    )
