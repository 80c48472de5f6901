"""Real video files whose frames say their number, in the layouts of CLEVRER and SSv2."""

import struct
from fractions import Fraction

import av
import numpy as np

from tests.ssv2 import write_parts

LEVEL = 4  # of grey from one frame to the next
CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}


def frames_of(count, size=(32, 48)):
    """Frame k, uint8 (H, W, 3), is grey of 20 + LEVEL k, at most white."""
    return [np.full((*size, 3), min(20 + LEVEL * k, 255), np.uint8) for k in range(count)]


def write_video(path, frames, fps=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(CODECS[path.suffix], rate=Fraction(fps), options={"crf": "4"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def hide(path, first, count, fps=12):
    """An mp4 cut to `count` frames from `first` on by its edit list alone, as by ffmpeg -c copy."""
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12  # its one entry: a length, and from where on
    _, start = struct.unpack_from(">Ii", content, place)
    with av.open(str(path)) as file:
        ticks = round(1 / (fps * file.streams.video[0].time_base))
    # The length is in milliseconds, as all of a file that PyAV writes.
    struct.pack_into(">Ii", content, place, 1000 * count // fps, start + first * ticks)
    path.write_bytes(content)
    return path


def numbers_in(clip):
    """Which frames of its video are in a clip (C, T, H, W), or clips (B, C, T, H, W)."""
    levels = np.asarray(clip, dtype=float).mean(axis=(-4, -2, -1))
    return np.rint((levels - 20) / LEVEL).astype(int).tolist()


def write_clevrer(root, train=4, validation=2, count=50, size=(32, 48)):
    for part, first, videos in (("train", 0, train), ("validation", 10_000, validation)):
        for number in range(first, first + videos):
            folder = root / f"video_{part}" / f"video_{first:05d}-{first + 1000:05d}"
            write_video(folder / f"video_{number:05d}.mp4", frames_of(count, size), fps=25)
    return root


def write_numbered_ssv2(root, lists, lengths=(40, 20)):
    """SSv2's layout of frames that say their number; the second video is too short for a clip."""
    parts = {
        part: [
            (number, f"holding thing {number}", frames_of(length))
            for number, length in enumerate(lengths, start=first)
        ]
        for part, first in (("train", 100), ("validation", 200))
    }
    return write_parts(root, parts, lists)
