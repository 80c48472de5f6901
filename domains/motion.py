"""Human motion: HumanML3D's clips on a canvas of frames, conditioned on their captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.random import generator, seed_of

from . import humanml3d
from .codecs import PIXELS, Codec, fingerprint
from .decoding import Unreadable
from .domain import Batch, Condition, Domain
from .humanml3d import BATCH, CANVAS, REPLICATION, SHORT, UNIT, WIDTH, Clips, cropped_length
from .order import Draws
from .skeleton import joints_of, save_animation, save_poses
from .texts import NONE, TextEncoder, embedded, identity_of, width_of


class MotionCodec:
    """Features in units of their deviation from the mean; padding, which is the mean, is 0."""

    uses_noise = False

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        self.mean, self.std = (torch.from_numpy(values)[:, None] for values in (mean, std))

    @cached_property
    def identity(self) -> dict:
        return {"name": "Mean.npy and Std.npy",
                "sha256": fingerprint({"mean": self.mean, "std": self.std})}  # fmt: skip

    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        return (stored - self.mean) / self.std

    def decode(self, x: Tensor) -> Tensor:
        return x.float() * self.std + self.mean

    def to(self, device: torch.device | str) -> "MotionCodec":
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self


class Motions(torch.utils.data.Dataset):
    """Clips by the rules of HumanML3D's loader: one of their captions, a length, a place in them,
    all functions of the draw. float32 (B, 263, frames), padded by the mean, and a mask."""

    decodes = True

    def __init__(self, clips: Clips, vectors: Tensor | None, mean: np.ndarray, frames: int) -> None:
        self.clips, self.vectors = clips, vectors
        self.mean, self.frames = mean, frames

    def __len__(self) -> int:
        return len(self.clips)

    def fingerprint(self) -> str:
        return self.clips.fingerprint()

    def __getitems__(self, draws: Draws) -> Batch:
        size = len(draws.index)
        raw = np.tile(self.mean[:, None], (size, 1, self.frames))
        mask = torch.zeros(size, 1, self.frames, dtype=torch.bool)
        y = torch.zeros(size, 0 if self.vectors is None else self.vectors.shape[1])
        for row, (index, seed) in enumerate(
            zip(draws.index.tolist(), draws.seed.tolist(), strict=True)
        ):
            clip = self.clips.clips[index]
            which, short, place = torch.rand(3, generator=generator("cpu", "motion", seed, index))
            try:
                motion = clip.crop(short=bool(short < SHORT), place=place.item())
            except Unreadable as error:
                return Batch.failed(str(error))
            motion = motion[: self.frames]
            raw[row, :, : len(motion)] = motion.T
            mask[row, :, : len(motion)] = True
            if self.vectors is not None:
                y[row] = self.vectors[clip.captions[int(which * len(clip.captions))]]
        index = torch.from_numpy(draws.index)
        return Batch(torch.from_numpy(raw), y, index, problems=[], mask=mask)


@dataclass(frozen=True)
class MotionDomain(Domain):
    """HumanML3D's features of motions, padded to a canvas; the condition is a caption."""

    pads = True
    text_encoder: str = NONE
    data_path: str | None = None
    cache_dir: str | None = None
    device: torch.device | str = "cpu"  # of the text encoder

    @classmethod
    def create(
        cls, name: str, *, image_size: int, num_classes: int | None, vae: str, text_encoder: str,
        data_path: str | None, cache_dir: str | None, device: torch.device | str, **_,
    ) -> "MotionDomain":  # fmt: skip
        """
        Args:
            image_size: frames of the canvas; longer clips are cut.

        Raises:
            InputError: flags of other modalities, or no such canvas.
        """
        if vae != PIXELS:
            raise InputError(f"--vae {vae}: motions are not encoded, leave it out")
        if num_classes:
            raise InputError(f"--num-classes {num_classes}: {name} has captions, not classes")
        if image_size % UNIT or not UNIT <= image_size <= CANVAS:
            raise InputError(
                f"--image-size {image_size}: the canvas has {UNIT} to {CANVAS} frames, a multiple "
                f"of {UNIT}"
            )
        shape = (WIDTH, image_size)
        return cls(name, shape, shape, vae, text_encoder, data_path, cache_dir, device)

    @cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        return humanml3d.read_statistics(self.data_path)

    @cached_property
    def codec(self) -> Codec:
        return MotionCodec(*self.statistics)

    @property
    def num_classes(self) -> int:
        return 0

    @property
    def text_width(self) -> int:
        return width_of(self.text_encoder)

    @property
    def identity(self) -> dict[str, Any]:
        return self.codec.identity | {"text_encoder": identity_of(self.text_encoder)}

    def unlike(self, key: str, was: Any, now: Any) -> str:
        flag, what = ("--text-encoder", "text encoder") if key == "text_encoder" else (
            "--data-path", "Mean.npy or Std.npy"
        )  # fmt: skip
        return f"it was trained with another {what}: give {flag} the one of then"

    @property
    def conditions(self) -> dict[str, Any]:
        captions = self.test_clips.fingerprint() if self.data_path else None
        return {"captions": captions, "text_encoder": identity_of(self.text_encoder)}

    def vectors(self, clips: Clips) -> Tensor | None:
        """The embedded captions (captions, W); None without condition."""
        if not self.text_width:
            return None
        texts = [caption.text for caption in clips.captions]
        return embedded(texts, self.text_encoder, self.cache_dir, self.device)

    def train_set(self, *, augment: bool = True) -> Motions:
        clips = humanml3d.read_clips(self.data_path, "train")
        try:
            humanml3d.check_statistics(clips, self.data_path, self.statistics[1])
        except Unreadable as error:
            raise InputError(str(error)) from error
        return self.motions(clips)

    def held_out_set(self) -> Motions:
        return self.motions(self.test_clips)

    def motions(self, clips: Clips) -> Motions:
        return Motions(clips, self.vectors(clips), self.statistics[0], self.raw_shape[1])

    @cached_property
    def test_clips(self) -> Clips:
        return humanml3d.read_clips(self.data_path, "test")

    @cached_property
    def test_vectors(self) -> Tensor | None:
        return self.vectors(self.test_clips)

    # Samples are drawn with the captions and lengths of the test split. A choice is a caption's row
    # and, as in HumanML3D's loader, whether it is a UNIT shorter: 2 row + short.

    choices_are = "captions of the test split, each in two lengths"
    held_out_labels = True

    @property
    def choices(self) -> int:
        return 2 * len(self.test_clips.captions) if self.data_path else 0

    def chosen(self, numbers: Sequence[int], drawn: Tensor) -> Tensor:
        """By MDM's evaluation: a replication of 1024 samples goes through the shuffled test split,
        and takes a caption of each clip."""
        if not self.data_path:
            return drawn
        clips = self.test_clips
        # Batches of R-precision do not reach from one turn into the next.
        whole = len(clips) // BATCH * BATCH or len(clips)
        chosen = []
        for number in numbers:
            replication, place = divmod(int(number), REPLICATION)
            turn, place = divmod(place, whole)
            random = generator("cpu", "replication", replication, turn)
            clip = clips.clips[torch.randperm(len(clips), generator=random)[place]]
            which, short = torch.rand(2, generator=random.manual_seed(seed_of("caption", number)))
            row = clip.captions[int(which * len(clip.captions))]
            chosen.append(2 * row + int(short < SHORT))
        return torch.tensor(chosen, device=drawn.device)

    def labels(self, chosen: Tensor) -> np.ndarray:
        """int64 (N, 2): the row of the caption among those of the test split, and the frames."""
        clips, of_caption = self.test_clips, self.test_clips.of_caption()
        rows = [divmod(choice, 2) for choice in chosen.tolist()]
        return np.array(
            [(row, self.frames(clips.clips[of_caption[row]].length, short)) for row, short in rows],
            dtype=np.int64,
        ).reshape(-1, 2)

    def frames(self, length: int, short: int) -> int:
        return min(cropped_length(length, short=bool(short)), self.raw_shape[1])

    def condition(self, chosen: Tensor) -> Condition:
        if not self.data_path:
            vectors = torch.zeros(len(chosen), self.text_width)
            return self.conditioned(vectors, [self.raw_shape[1]] * len(chosen), chosen.device)
        rows, frames = self.labels(chosen).T
        vectors = self.test_vectors[rows] if self.text_width else torch.zeros(len(rows), 0)
        return self.conditioned(vectors, frames, chosen.device)

    def prompted(self, prompts: Sequence[str], frames: int | None) -> Condition:
        canvas = self.raw_shape[1]
        if not self.text_width:
            raise InputError(f"--prompts: the model was trained with --text-encoder {NONE}")
        if frames is not None and frames > canvas:
            raise InputError(f"--num-frames {frames}: the model has {canvas} or fewer")
        vectors = TextEncoder.load(self.text_encoder, self.cache_dir, self.device)(prompts)
        return self.conditioned(vectors, [frames or canvas] * len(prompts), "cpu")

    def conditioned(
        self, vectors: Tensor, frames: Sequence[int], device: torch.device | str
    ) -> Condition:
        mask = torch.arange(self.raw_shape[1]) < torch.as_tensor(frames)[:, None]
        return {"y": vectors.to(device), "mask": mask[:, None].to(device)}

    @property
    def rounding(self) -> dict[str, str]:
        return {"float32": "features of HumanML3D, not normalized"}

    def arrays(self, raw: Tensor) -> np.ndarray:
        """float32 (B, frames, 263), the whole canvas."""
        return raw.transpose(1, 2).cpu().numpy()

    def titles(self, chosen: Tensor) -> list[str]:
        if not self.text_width or not self.data_path:
            return []
        return [self.test_clips.captions[choice // 2].text for choice in chosen.tolist()]

    def save_grid(
        self, raw: Tensor, path: str | Path, *,
        cond: Condition | None = None, titles: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Stick figures: poses on a sheet, and an animation, NAME.gif, beside it."""
        frames = [raw.shape[2]] * len(raw) if cond is None else cond["mask"].sum((1, 2)).tolist()
        joints = joints_of(raw.transpose(1, 2).cpu())
        motions = [motion[:length] for motion, length in zip(joints, frames, strict=True)]
        save_poses(Path(path), motions, titles=titles or None)
        save_animation(Path(path).with_suffix(".gif"), motions, titles=titles or None)
