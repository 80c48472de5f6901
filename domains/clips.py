"""Video files in and out: clips of their frames through PyAV, mp4, sheets of frames."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.files import atomic_write

from .decoding import Unreadable, center_crop
from .pictures import save_grid, sheet
from .sound import container, pyav

MOST_PIXELS = 2**26  # of a frame: twice 8K
MOST_BYTES = 2**31  # of the frames of a whole video: 7 minutes of 256 x 256 pixels
MODES = {1: "L", 3: "RGB"}


class Cut(NamedTuple):
    """What a clip is of a video."""

    frames: int
    stride: int  # frames of the video from one of the clip to the next
    size: tuple[int, int]  # height and width of the centre that is cut from the resized frame
    channels: int = 3  # 1: grey
    holds: bool = False  # the last frame of a video that is too short, else it is refused

    @property
    def span(self) -> int:
        """Frames of the video from the clip's first to its last."""
        return (self.frames - 1) * self.stride + 1

    def numbers(self, length: int, place: float) -> range:
        """Which frames of a video of that length; some are behind the end of one too short.

        Args:
            place: where it begins, from 0, the start, to 1 (not included), as late as it still
                fits.
        """
        first = int(place * (max(0, length - self.span) + 1))
        return range(first, first + self.span, self.stride)

    def too_long(self, name: str | Path, length: int) -> str:
        """A sentence about a video that is shorter than the clip."""
        return (
            f"{name} has {length} frames, and a clip is {self.frames} of {self.span} (every "
            f"{self.stride}): give another --num-frames or --frame-stride"
        )


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file and its first stream of video; within, what is wrong has a name.

    Raises:
        Unreadable: it is damaged, or holds no video.
    """
    with container(path) as file:
        stream = next(iter(file.streams.video), None)
        if stream is None:
            raise Unreadable(f"{path} holds no video")
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        check_size(path, stream)
        yield file, stream


def decoded(path: Path, cut: Cut, *, place: float) -> np.ndarray:
    """A clip, uint8 (C, T, H, W).

    Args:
        place: see Cut.numbers.

    Raises:
        Unreadable: the file is damaged, holds no video, or is shorter than the clip.
    """
    with opened(path) as (file, stream):
        said = length(file, stream)
        images, seen = taken(path, file, stream, cut, cut.numbers(said, place))
    if len(images) < cut.frames and seen < said and seen == shown(path):
        with opened(path) as (file, stream):
            images, seen = taken(path, file, stream, cut, cut.numbers(seen, place))
    missing = cut.frames - len(images)
    if missing and not (cut.holds and images):
        raise Unreadable(cut.too_long(path, seen))
    return np.stack(images + images[-1:] * missing).transpose(3, 0, 1, 2)


def taken(path: Path, file, stream, cut: Cut, wanted: range) -> tuple[list[np.ndarray], int]:
    """The wanted frames that there are, and how many were decoded."""
    images, seen = [], 0
    for number, frame in enumerate(islice(file.decode(stream), wanted.stop)):
        seen = number + 1
        if number in wanted:
            images.append(pixels(path, frame, cut))
    return images, seen


def whole(path: Path, cut: Cut) -> np.ndarray:
    """All frames of a video, uint8 (C, T, H, W).

    Raises:
        Unreadable: the file is damaged, holds no video, ends before it says, or does not fit into
            memory: frames that are all alike take 13 bytes each of a file.
    """
    most = MOST_BYTES // (math.prod(cut.size) * cut.channels)
    with opened(path) as (file, stream):
        frames = islice(file.decode(stream), most + 1)
        images = [pixels(path, frame, cut) for frame in frames]
        expected = max(stream.frames, 1)
    if len(images) > most:
        raise Unreadable(f"{path} has more than {most:,} frames of {cut.size[0]} x {cut.size[1]}")
    if not images or (len(images) < expected and len(images) != shown(path)):
        raise Unreadable(f"{path} ends after {len(images)} of its {expected} frames")
    return np.stack(images).transpose(3, 0, 1, 2)


def pixels(path: Path, frame, cut: Cut) -> np.ndarray:
    """uint8 (H, W, C)."""
    check_size(path, frame)
    image = center_crop(frame.to_image(), cut.size).convert(MODES[cut.channels])
    return np.asarray(image).reshape(*cut.size, -1)


def check_size(path: Path, picture) -> None:
    """
    Raises:
        Unreadable: a stream or a frame claims an absurd size.
    """
    if picture.width * picture.height > MOST_PIXELS:
        raise Unreadable(f"{path} claims {picture.width} x {picture.height} pixels")


def length(file, stream) -> int:
    """Frames of a video; a container that does not say is read through, decoding nothing."""
    if stream.frames:
        return stream.frames
    count = sum(packet.size > 0 for packet in file.demux(stream))
    file.seek(0)
    return count


def shown(path: Path) -> int:
    """Frames of an mp4 that an edit list does not hide: it stands in files that were cut without
    being encoded anew, and `stream.frames` counts what it hides. Decodes nothing."""
    with opened(path) as (file, stream):
        return stream.frames - sum(packet.is_discard for packet in file.demux(stream))


def write_mp4(file, frames: Iterable[np.ndarray], fps: float, *, crf: int = 23) -> None:
    """uint8 (H, W, 3) each, one after the other, as H.264 that browsers play.

    Args:
        crf: x264's loss, 0 (none but that of colors) to 51.
    """
    av = pyav()
    options = {"preset": "veryfast", "crf": str(crf)}
    with av.open(file, "w", format="mp4") as video:
        stream = None
        for frame in frames:
            height, width, _ = frame.shape
            # Colors are stored for squares of 2x2 pixels.
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                rate = Fraction(fps).limit_denominator(1000)
                stream = video.add_stream("h264", rate=rate, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode(None))


def strips(clips: Tensor, *, most: int, size: int) -> Tensor:
    """uint8 (B, C, T, H, W) -> pictures (B, C, size, width) of at most `most` frames, from the
    first to the last, side by side, each `size` pixels high."""
    height, width = clips.shape[3:]
    chosen = np.linspace(0, clips.shape[2] - 1, min(most, clips.shape[2])).round()
    frames = clips[:, :, chosen.astype(int)].transpose(1, 2)
    own = frames.flatten(0, 1).float()
    mode = "area" if height > size else "nearest-exact"
    own = F.interpolate(own, (size, round(width * size / height)), mode=mode)
    own = F.pad(own.round().to(torch.uint8), (0, 2), value=255)
    return own.unflatten(0, frames.shape[:2]).permute(0, 2, 3, 1, 4).flatten(3)


def save_clips(clips: Tensor, path: Path, fps: float) -> None:
    """uint8 (B, C, T, H, W): a PNG sheet, a row of frames per clip, and all of them moving side by
    side in an mp4 of the same name, so many frames a second."""
    clips = clips.cpu()
    save_grid(strips(clips, most=8, size=min(max(clips.shape[3], 64), 128)), path, columns=1)
    columns = math.ceil(math.sqrt(len(clips)))
    with atomic_write(path.with_suffix(".mp4")) as file:
        write_mp4(file, (sheet(frame, columns) for frame in clips.unbind(2)), fps, crf=12)
