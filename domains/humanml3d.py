"""HumanML3D's folder: clips of human motion, their captions, and the statistics of its features."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.errors import InputError
from runtime.untrusted import read_array, read_text, shown

from .decoding import Unreadable
from .skeleton import FPS, WIDTH

SHORTEST, TOO_LONG = 40, 200  # frames of a clip that is used: 2 to 10 seconds
UNIT = 4  # lengths are multiples of it: the evaluator's movement encoder halves time twice
CANVAS = 196  # the longest multiple of it
SHORT = 1 / 3  # share of clips shown a UNIT shorter than they are
REPLICATION, BATCH = 1024, 32  # samples of a replication of MDM's evaluation, and of R-precision
LAYOUT = "new_joint_vecs/, texts/, Mean.npy, Std.npy, train.txt and test.txt"
# T2M sees the root and the feet 25 times larger than Std.npy makes them: its authors divided their
# deviations by 5, and did so twice.
LOUD = np.r_[:4, WIDTH - 4 : WIDTH]
LOUDER = 25
MOST_NAME = 200  # bytes of a clip's name
MOST_SECONDS = 1e6  # at which a caption begins or ends
LOOKED_AT = 64  # clips, to tell whose deviations Std.npy holds


class Caption(NamedTuple):
    text: str
    tokens: tuple[str, ...]  # its words with their parts of speech: "person/NOUN", "walk/VERB"


class Clip(NamedTuple):
    """Frames `start` to `stop` of a file, and the rows of their captions."""

    path: Path
    start: int
    stop: int
    captions: range

    @property
    def length(self) -> int:
        return self.stop - self.start

    def crop(self, *, short: bool, place: float) -> np.ndarray:
        """float32 (frames, 263), not normalised: a stretch of `cropped_length`, at `place` (0..1)
        of those there are.

        Raises:
            Unreadable: the file is damaged, or has numbers that are not finite.
        """
        frames = cropped_length(self.length, short=short)
        first = self.start + int(place * (self.length - frames + 1))
        motion = np.array(mapped(self.path)[first : first + frames], dtype=np.float32)
        if not np.isfinite(motion).all():
            raise Unreadable(
                f"{self.path} has numbers that are not finite: process it again, or take it off "
                "the lists"
            )
        return motion


def cropped_length(length: int, *, short: bool) -> int:
    """The frames that a clip is shown with: a multiple of UNIT, a third of the time (`short`) one
    UNIT less than there are."""
    return (length // UNIT - short) * UNIT


def mapped(path: Path) -> np.ndarray:
    """A file's features (T, 263), read when they are used.

    Raises:
        Unreadable: no such array in it.
    """
    try:
        motion = read_array(path, mapped=True)
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read as an array of numbers ({error})") from error
    if motion.ndim != 2 or motion.shape[1] != WIDTH or motion.dtype.kind != "f":
        raise Unreadable(
            f"{path} is {motion.dtype} {motion.shape}; a motion of HumanML3D has {WIDTH} features "
            "per frame"
        )
    return motion


@dataclass(frozen=True)
class Clips:
    """The clips of a split by HumanML3D's rules of loading, and all their captions."""

    clips: list[Clip]
    captions: list[Caption]

    def __len__(self) -> int:
        return len(self.clips)

    def fingerprint(self) -> str:
        """Of the captions, by which samples refer to them."""
        return hashlib.sha256(repr(self.captions).encode()).hexdigest()

    def of_caption(self) -> np.ndarray:
        """int64 (captions,): the number of the clip that a caption belongs to."""
        counts = [len(clip.captions) for clip in self.clips]
        return np.repeat(np.arange(len(self.clips)), counts)


def read_clips(data_path: str | None, split: str) -> Clips:
    """The clips of HumanML3D's list `split`.txt.

    A caption with a time range is a clip of its own; the others share the whole motion. Clips of
    less than 2 or at least 10 seconds are left out.

    Raises:
        InputError: no data, motions or texts that are not there, or none that can be used.
    """
    if data_path is None:
        raise InputError(f"--dataset_name humanml3d needs --data-path FOLDER with {LAYOUT}")
    root = Path(data_path)
    names = read_list(root / f"{split}.txt")
    for folder, suffix in (("new_joint_vecs", "npy"), ("texts", "txt")):
        paths = [root / folder / f"{name}.{suffix}" for name in names]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(names)} files of {split}.txt are not there, "
                f"{missing[0]} the first: process HumanML3D anew, or take them off the list"
            )
    found = Clips([], [])
    for name in names:
        path = root / "new_joint_vecs" / f"{name}.npy"
        try:
            frames = len(mapped(path))
        except Unreadable as error:
            raise InputError(str(error)) from error
        if not SHORTEST <= frames < TOO_LONG:
            continue
        for (start, stop), captions in spans(root / "texts" / f"{name}.txt", frames):
            if SHORTEST <= stop - start < TOO_LONG:
                first = len(found.captions)
                found.captions.extend(captions)
                rows = range(first, len(found.captions))
                found.clips.append(Clip(path, start, stop, rows))
    if not found.clips:
        raise InputError(f"{root} has no clip of 2 to 10 seconds in {split}.txt")
    return found


def read_list(path: Path) -> list[str]:
    try:
        names = read_text(path).split()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: expected HumanML3D's {LAYOUT} in --data-path"
        ) from error
    for name in names:
        if Path(name).name != name or "\0" in name or len(name.encode()) > MOST_NAME:
            raise InputError(f"{path}: {shown(name)} leads out of the folder, or is no name")
    return names


def spans(path: Path, frames: int) -> list[tuple[tuple[int, int], list[Caption]]]:
    """The stretches of a motion that a file of texts describes, each with its captions.

    Raises:
        InputError: a line that is no `caption#word/POS ...#start#end`.
    """
    whole: list[Caption] = []
    parts = []
    try:
        text = read_text(path, errors="replace")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    for number, line in enumerate(filter(str.strip, text.splitlines()), start=1):
        try:
            caption, tokens, *times = line.strip().split("#")
            start, end = (0.0 if math.isnan(time := float(word)) else time for word in times)
            if not abs(start) < MOST_SECONDS or not abs(end) < MOST_SECONDS:
                raise ValueError
        except ValueError:
            raise InputError(
                f"{path}, line {number} is no caption#word/POS word/POS#start#end: {line[:60]!r}"
            ) from None
        described = Caption(caption, tuple(tokens.split(" ")))
        if start == end == 0.0:
            whole.append(described)
        else:
            first, last = (min(max(int(time * FPS), 0), frames) for time in (start, end))
            parts.append(((first, last), [described]))
    if not whole and not parts:
        raise InputError(f"{path} has no caption: write one per line, or take it off the lists")
    return parts + ([((0, frames), whole)] if whole else [])


def read_statistics(data_path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean.npy and Std.npy, float32 (263,).

    Raises:
        InputError: not there, or of another shape.
    """
    if data_path is None:
        raise InputError(
            "motions need --data-path: their features are in units of its Mean.npy and Std.npy"
        )
    mean, std = (statistic(Path(data_path) / name) for name in ("Mean.npy", "Std.npy"))
    if (std <= 0).any():
        raise InputError(f"{data_path}/Std.npy has {std.min():g}: deviations are more than 0")
    return mean, std


def check_statistics(clips: Clips, data_path: str, std: np.ndarray) -> None:
    """
    Raises:
        InputError: Std.npy holds the evaluator's deviations.
        Unreadable: one of the clips that are looked at is damaged.
    """
    chosen = clips.clips[:: max(1, len(clips) // LOOKED_AT)]
    frames = np.concatenate([clip.crop(short=False, place=0.0) for clip in chosen]) / std
    loud, others = np.median(frames[:, LOUD].std(0)), np.median(np.delete(frames, LOUD, 1).std(0))
    if loud > LOUDER**0.5 * others:
        raise InputError(
            f"{data_path}/Std.npy makes the root and the feet {loud / max(others, 1e-9):.0f} times "
            "as large as the rest: it is the evaluator's t2m_std.npy; take HumanML3D's own"
        )


def statistic(path: Path) -> np.ndarray:
    """One number per feature, float32 (263,).

    Raises:
        InputError: not there, or of another shape.
    """
    try:
        values = read_array(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): it belongs to HumanML3D") from error
    if values.shape != (WIDTH,) or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise InputError(f"{path} is {values.dtype} {values.shape}; it has {WIDTH} finite numbers")
    return values.astype(np.float32)
