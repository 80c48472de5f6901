"""Videos: CLEVRER and Something-Something V2, clips of them, frames through an image's codec.

Whether videos are files or were encoded before (frame_store.py), a `VideoSource` says.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.random import generator
from runtime.untrusted import json_of

from .clips import Cut, decoded, save_clips, whole
from .codecs import PIXELS, Codec, PixelCodec, VAECodec, latent_shape
from .decoding import Found, Unreadable, readable
from .domain import Batch, Domain, check_class_count
from .order import Draws
from .sources import NoHeldOut, Where, folders_below, given_folder

CLEVRER = "video_train/video_00000-01000/video_00000.mp4"
CLEVRER_NAME = re.compile(r"video_([0-9]{1,18})\.mp4")
CLEVRER_PARTS = {"train": range(10_000), "validation": range(10_000, 15_000)}  # by their numbers
LABELS = "labels.json"  # of videos in CLEVRER's layout that have classes; CLEVRER's own have none

SSV2_VIDEOS = "20bn-something-something-v2"
SSV2_LISTS = ("something-something-v2-{}.json", "labels/{}.json")  # by 20BN, by Qualcomm
MOST_DIGITS = 20  # of a video's number
MOST_CAPTION = 10_000  # bytes; networks read some hundred words
PARTS = {False: "train", True: "validation"}  # held out? -> part


class Videos(NamedTuple):
    """Files and, where they have classes, which."""

    root: Path
    paths: Sequence[Path]
    labels: Sequence[int] | None = None
    class_names: tuple[str, ...] | None = None


def clevrer(where: Where) -> Videos:
    """Videos in CLEVRER's layout, told apart by their numbers: 0 to 9,999 are to train on, up to
    14,999 for validation. With a `labels.json` they have classes.

    Raises:
        InputError: there are none.
        NoHeldOut: none of them are for validation.
    """
    root, part = given_folder(where), PARTS[where.held_out]
    found = {
        int(match[1]): Path(base, name)
        for base, names in folders_below(root)
        for name in names
        if (match := CLEVRER_NAME.fullmatch(name))
    }
    if not found:
        raise InputError(f"--data-path {root} has no video of CLEVRER: expected {CLEVRER} in it")
    numbers = CLEVRER_PARTS[part]
    paths = [found[number] for number in sorted(found) if number in numbers]
    if not paths:
        kind = NoHeldOut if where.held_out else InputError
        raise kind(
            f"--data-path {root} has no {part} videos, which are video_{numbers[0]:05d}.mp4 to "
            f"video_{numbers[-1]:05d}.mp4"
        )
    if not where.labeled or not (root / LABELS).is_file():
        return Videos(root, paths)
    return Videos(root, paths, *read_labels(root / LABELS, [path.stem for path in paths]))


def read_labels(path: Path, names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Classes of videos by their names, and what the classes are called.

    Raises:
        InputError: it is no such file, or a video is not in it.
    """
    content = listed(path)
    try:
        classes, numbers = tuple(map(str, content["classes"])), content["videos"]
        labels = [numbers[name] for name in names]
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f'{path}: {error} is missing; expected {{"classes": [name, ...], "videos": '
            '{"video_00000": number of its class, ...}}'
        ) from error
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < len(classes)]
    if wrong:
        raise InputError(f"{path}: class {wrong[0]!r}, but there are {len(classes)}, from 0 on")
    return labels, classes


def listed(path: Path):
    """The content of a JSON.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return json_of(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error


def ssv2(where: Where) -> Videos:
    """Something-Something V2 without its texts."""
    root = given_folder(where)
    return Videos(root, [path for path, _ in read_ssv2(root, PARTS[where.held_out])])


def read_ssv2(data_path: str | Path, part: str) -> list[tuple[Path, str]]:
    """Video and text of every entry of Something-Something V2's list.

    Args:
        part: "train" or "validation".

    Raises:
        InputError: no list, one of something else, or videos that are not there.
    """
    root = Path(data_path)
    places = [root / name.format(part) for name in SSV2_LISTS]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        expected = " or ".join(str(place.relative_to(root)) for place in places)
        raise InputError(f"--data-path {root} has no list of SSv2: expected {expected} in it")
    entries = listed(path)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} is no list of SSv2: expected [{{id, label, ...}}, ...]")
    found = []
    for number, entry in enumerate(entries):
        texts = [entry.get(key) if isinstance(entry, dict) else None for key in ("id", "label")]
        # "²" is a digit, too, and no number; a text is kept as bytes, all as long as the longest.
        number_and_text = all(isinstance(text, str) for text in texts) and (
            texts[0].isascii() and texts[0].isdigit() and len(texts[0]) <= MOST_DIGITS
        )
        if not number_and_text or len(texts[1].encode(errors="replace")) > MOST_CAPTION:
            keys = ", ".join(map(str, entry)) if isinstance(entry, dict) else repr(entry)[:40]
            raise InputError(
                f"{path}, entry {number} has {keys}; an entry of SSv2 has id, a number as a "
                "string, and label, a text"
            )
        caption = texts[1].encode(errors="replace").decode()  # half a letter cannot be written
        found.append((root / SSV2_VIDEOS / f"{texts[0]}.webm", caption))
    folder = root / SSV2_VIDEOS
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [video for video, _ in found if video.name not in there]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(found)} videos of {path.name} are not there, {missing[0]} "
            "the first: unpack all parts of SSv2"
        )
    return found


class ClipSource(Protocol):
    """Videos to cut clips from."""

    labels: np.ndarray  # int64 (N,), zeros where there are no classes
    class_names: tuple[str, ...] | None
    decodes: bool  # see DataSet

    def __len__(self) -> int: ...

    def read(self, index: int, place: float) -> np.ndarray:
        """What the codec's `encode` takes of a clip.

        Args:
            place: see Cut.numbers.

        Raises:
            Unreadable: the video is damaged, or shorter than the clip.
        """

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class VideoFiles:
    """Video files, and how clips are cut from them: a ClipSource."""

    root: Path
    paths: np.ndarray  # bytes (N,): workers would copy a list, for counting references writes to it
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    cut: Cut

    decodes = True

    @classmethod
    def of(cls, videos: Videos, cut: Cut) -> "VideoFiles":
        paths = np.array([os.fsencode(path) for path in videos.paths])
        labels = np.array(videos.labels or [0] * len(paths), dtype=np.int64)
        return cls(videos.root, paths, labels, videos.class_names, cut)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, place: float) -> np.ndarray:
        """uint8 (C, T, H, W)."""
        return decoded(self.path(index), self.cut, place=place)

    def whole(self, index: int) -> np.ndarray:
        """uint8 (C, T, H, W), all frames; raises `Unreadable`."""
        return whole(self.path(index), self.cut)

    def path(self, index: int) -> Path:
        return Path(os.fsdecode(self.paths[index]))

    def name(self, index: int) -> str:
        return self.path(index).relative_to(self.root).as_posix()

    def followed_by(self, others: "VideoFiles") -> "VideoFiles":
        paths, labels = (
            np.concatenate([getattr(part, name) for part in (self, others)])
            for name in ("paths", "labels")
        )
        return dataclasses.replace(self, paths=paths, labels=labels)

    def named(self):
        """SHA-256 of names below the root and sizes."""
        paths = self.paths.tolist()
        names = [os.path.relpath(path, os.fsencode(self.root)) for path in paths]
        digest = hashlib.sha256(b"\n".join(names))
        digest.update(np.array([os.stat(path).st_size for path in paths]).tobytes())
        return digest

    def digest(self):
        """Of classes, too."""
        digest = self.named()
        digest.update(self.labels.tobytes())
        return digest

    def fingerprint(self) -> str:
        """Of all that and of how clips are cut."""
        digest = self.digest()
        digest.update(repr(tuple(self.cut)).encode())
        return digest.hexdigest()


def place_of(seed: int, index: int) -> float:
    """Where a draw's clip begins in its video, see Cut.numbers."""
    return torch.rand((), generator=generator("cpu", "clip", seed, index)).item()


class Clips(torch.utils.data.Dataset):
    """A clip of a video, where its Draws say: uint8 (B, C, T, H, W), or what is stored of it."""

    def __init__(self, source: ClipSource, *, skip_corrupt: bool) -> None:
        self.source, self.skip_corrupt = source, skip_corrupt
        self.decodes = source.decodes

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def __getitems__(self, draws: Draws) -> Batch:
        pairs = zip(draws.index.tolist(), draws.seed.tolist(), strict=True)
        try:
            found = [self.read(index, seed) for index, seed in pairs]
        except Unreadable as error:
            return Batch.failed(str(error))
        index = np.array([one.index for one in found])
        raw, y = np.stack([one.sample for one in found]), self.source.labels[index]
        problems = [sentence for one in found for sentence in one.problems]
        return Batch(*map(torch.from_numpy, (raw, y, index)), problems)

    def read(self, wanted: int, seed: int) -> Found:
        def clip(index: int) -> np.ndarray:
            return self.source.read(index, place_of(seed, index))

        return readable(clip, wanted, len(self), "videos", skip_corrupt=self.skip_corrupt)


class FrameCodec:
    """An image's codec, frame by frame: (B, C, T, h, w) in the place of (B, C, h, w)."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.identity, self.uses_noise = codec.identity, codec.uses_noise

    def encode(self, raw: Tensor) -> Tensor:
        return by_frame(self.codec.encode, raw)

    def to_input(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        return self.codec.to_input(stored, noise)

    def decode(self, x: Tensor) -> Tensor:
        return by_frame(self.codec.decode, x)

    def to(self, device: torch.device | str) -> "FrameCodec":
        self.codec.to(device)
        return self

    @classmethod
    def load(cls, vae: str, cache_dir: str | None) -> "FrameCodec":
        return cls(VAECodec.load(vae, cache_dir))


def by_frame(function: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    """A function of images (N, C, H, W) of every frame of clips (B, C, T, H, W)."""
    frames = clips.transpose(1, 2)
    found = function(frames.flatten(0, 1))
    return found.unflatten(0, frames.shape[:2]).transpose(1, 2)


class VideoSource(Protocol):
    """Videos, and the codec of clips of them; both are opened when first asked for."""

    called: str  # what a person calls it
    stored_in: str | None  # see Domain
    vae: str
    frame_shape: tuple[int, ...]  # of a frame in the model's input, (C, h, w)
    codec: Codec
    skip_corrupt: bool  # go on without unreadable videos

    def clips(self, cut: Cut, *, held_out: bool, labeled: bool) -> ClipSource:
        """
        Args:
            labeled: False: classes are neither needed nor looked at.

        Raises:
            InputError: there are none, or clips of this kind are known to be impossible.
        """


class Folder:
    """Files below --data-path as a VideoSource, encoded in the loop.

    Args:
        find: the files.
        size: height and width of frames, for a VAE those of a square.
    """

    stored_in = None

    def __init__(
        self, name: str, find: Callable[[Where], Videos], *, size: tuple[int, int], channels: int,
        vae: str, data_path: str | None, cache_dir: str | None, skip_corrupt: bool,
    ) -> None:  # fmt: skip
        self.name, self.find, self.image_size = name, find, size[0]
        self.vae, self.data_path, self.cache_dir = vae, data_path, cache_dir
        self.skip_corrupt, self.called = skip_corrupt, f"{name} in {data_path}"
        if vae == PIXELS:
            self.frame_shape = (channels, *size)
        else:
            self.frame_shape = latent_shape(vae, size[0], cache_dir)

    @cached_property
    def codec(self) -> Codec:
        if self.vae == PIXELS:
            return PixelCodec()
        return FrameCodec.load(self.vae, self.cache_dir)

    def clips(self, cut: Cut, *, held_out: bool, labeled: bool) -> VideoFiles:
        where = Where(
            self.name, self.data_path, self.image_size, labeled=labeled, held_out=held_out
        )
        return VideoFiles.of(self.find(where), cut)


def videos(
    name: str, source: Callable[[Where], Videos], *, image_size: int | tuple[int, int],
    num_classes: int | None, vae: str, num_frames: int, frame_stride: int, fps: int,
    channels: int = 3, holds: bool = False, data_path: str | None, cache_dir: str | None,
    skip_corrupt: bool, **_,
) -> "VideoDomain":  # fmt: skip
    """The domain of files, from resolved flags.

    Args:
        fps: of the videos.

    Raises:
        InputError: flags that do not fit together.
    """
    if vae != PIXELS and channels != 3:
        raise InputError(f"--vae {vae} needs color videos; for {name} use --vae {PIXELS}")
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    folder = Folder(
        name, source, size=size, channels=channels, vae=vae, data_path=data_path,
        cache_dir=cache_dir, skip_corrupt=skip_corrupt,
    )  # fmt: skip
    cut = Cut(num_frames, frame_stride, size, channels, holds)
    return VideoDomain.create(name, folder, cut, fps, num_classes)


@dataclass(frozen=True)
class ClipDomain(Domain):
    """Clips of videos."""

    source: Any  # what is cut, a VideoSource or a CaptionedSource
    cut: Cut
    fps: int  # of the videos, of which a clip has every `cut.stride`th frame

    @property
    def num_frames(self) -> int:
        return self.cut.frames

    @property
    def frame_stride(self) -> int:
        return self.cut.stride

    @property
    def codec(self) -> Codec:
        return self.source.codec

    @property
    def stored_in(self) -> str | None:
        return self.source.stored_in

    @property
    def data_set(self) -> str | None:
        """Of the videos, however they are cut and labeled."""
        if self.stored_in:
            return None
        return self.train_set(augment=False).source.named().hexdigest()

    def arrays(self, raw: Tensor) -> np.ndarray:
        """uint8 (B, T, H, W, C)."""
        return raw.permute(0, 2, 3, 4, 1).cpu().numpy()

    def save_grid(self, raw: Tensor, path: str | Path, **_) -> None:
        """A row of frames per clip, and the clips beside each other as an mp4, NAME.mp4, in which
        things move as fast as in the videos."""
        save_clips(raw, Path(path), self.fps / self.cut.stride)


@dataclass(frozen=True)
class VideoDomain(ClipDomain):
    """Clips of a few frames, each frame encoded where there is a VAE."""

    source: VideoSource
    asked_classes: int | None = None  # None: as many as the data have

    @classmethod
    def create(
        cls, name: str, source: VideoSource, cut: Cut, fps: int, num_classes: int | None
    ) -> "VideoDomain":
        channels, *axes = source.frame_shape
        raw_shape = (cut.channels, cut.frames, *cut.size)
        shape = (channels, cut.frames, *axes)
        return cls(name, raw_shape, shape, source.vae, source, cut, fps, num_classes)

    @property
    def num_classes(self) -> int:
        if self.asked_classes is not None:
            return self.asked_classes
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train_source.class_names or ()

    @cached_property
    def train_source(self) -> ClipSource:
        return self.clips(held_out=False)

    def clips(self, *, held_out: bool) -> ClipSource:
        """
        Raises:
            InputError: no such videos, or classes that they do not have.
        """
        labeled = self.asked_classes != 0
        found = self.source.clips(self.cut, held_out=held_out, labeled=labeled)
        if self.asked_classes:
            if not found.class_names:
                raise InputError(
                    f"--num-classes {self.asked_classes}: {self.source.called} has no classes "
                    f"({LABELS}), leave it out"
                )
            check_class_count(self.name, len(found.class_names), self.asked_classes)
        return found

    def train_set(self, *, augment: bool = True) -> Clips:
        return Clips(self.train_source, skip_corrupt=self.source.skip_corrupt)

    def held_out_set(self) -> Clips:
        return Clips(self.clips(held_out=True), skip_corrupt=self.source.skip_corrupt)
