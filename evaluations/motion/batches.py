"""Batches of 32 motions with their captions: of real clips, and of samples."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from domains.decoding import Unreadable
from domains.humanml3d import BATCH, CANVAS, SHORT, UNIT, WIDTH, Caption, Clips
from evaluations.images.sources import DAMAGED, names_in, read_arrays, unreadable
from runtime.errors import InputError
from runtime.random import seed_of
from runtime.untrusted import Member, open_archive, open_member

from .evaluator import Statistics


class Batch(NamedTuple):
    motions: Tensor  # float32 (B, canvas, 263), normalized for the evaluator
    lengths: Tensor  # int64 (B,), frames
    captions: list[Caption]


def name_of(data: str) -> str:
    """A folder's last two names: the last is HumanML3D for much that is in its layout."""
    return "/".join(Path(data).resolve().parts[-2:])


def real_batches(
    clips: Clips, statistics: Statistics, *key: int | str, size: int = BATCH, canvas: int = CANVAS
) -> Iterator[Batch]:
    """All clips once in a random order, each with one of its captions and cropped as in training;
    what is left after the last full batch is left out.

    Args:
        canvas: the most frames of a clip; T2M's are not cut.
        key: order, captions and crops are a function of it.

    Raises:
        InputError: a damaged file.
    """
    random = np.random.default_rng(seed_of(*key))
    order = random.permutation(len(clips))
    for first in range(0, len(order) - size + 1, size):
        motions = np.zeros((size, canvas, WIDTH), np.float32)
        lengths, captions = [], []
        for motion, number in zip(motions, order[first : first + size], strict=True):
            clip = clips.clips[number]
            captions.append(clips.captions[random.choice(clip.captions)])
            try:
                crop = clip.crop(short=random.random() < SHORT, place=random.random())
            except Unreadable as error:
                raise InputError(str(error)) from error
            crop = crop[:canvas]
            motion[: len(crop)] = statistics.normalized(crop)
            lengths.append(len(crop))
        yield Batch(torch.from_numpy(motions), torch.tensor(lengths), captions)


class Samples:
    """Motions of an .npz of sample_ddp.py: features (N, canvas, 263) that are not normalized, and
    of each the row of its caption and its length in frames.

    Read as they are needed, for 20 replications are 4 GB. Nothing is unpickled.

    Raises:
        InputError: no such file, damaged, or other arrays.
    """

    def __init__(self, path: Path, captions: list[Caption]) -> None:
        self.path, self.captions = path, captions
        try:
            names = names_in(path)
            for name, what in (("arr_0", "motions"), ("arr_1", "captions and lengths")):
                if name not in names:
                    raise InputError(
                        f"{path} has no array {name} (the {what}), but "
                        f"{', '.join(names) or 'nothing'}: draw samples of a model of humanml3d"
                    )
            shape, in_columns, dtype = self.opened().header
        except InputError:
            raise
        except DAMAGED as error:
            raise unreadable(path, error) from error
        fit = len(shape) == 3 and shape[1] in range(UNIT, CANVAS + 1, UNIT) and shape[2] == WIDTH
        if not fit or dtype != np.float32 or in_columns:
            raise InputError(
                f"{path}: arr_0 is {dtype} {shape}, not float32 (N, {CANVAS} frames, {WIDTH} "
                f"features), or fewer frames, a multiple of {UNIT}"
            )
        self.count, self.canvas = shape[:2]
        self.rows, self.lengths = self.asked(read_arrays(path, ["arr_1"])["arr_1"])

    def __len__(self) -> int:
        return self.count

    def opened(self) -> Member:
        return open_member(open_archive(self.path), "arr_0")

    def asked(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two columns of arr_1."""
        if asked.shape != (self.count, 2) or asked.dtype.kind not in "iu":
            raise InputError(
                f"{self.path}: arr_1 is {asked.dtype} {asked.shape}, not the row of a caption and "
                f"a length for each of {self.count} motions"
            )
        rows, lengths = asked.astype(np.int64).T
        for name, column, low, high in (
            ("caption", rows, 0, len(self.captions) - 1), ("length", lengths, UNIT, self.canvas),
        ):  # fmt: skip
            wrong = column[(column < low) | (column > high)]
            if len(wrong):
                raise InputError(
                    f"{self.path}: {name} {wrong[0]} in arr_1, and they are {low} to {high}: "
                    "--data is not the folder that the samples were drawn with"
                )
        return rows, lengths

    def batches(self, statistics: Statistics, count: int) -> Iterator[Batch]:
        """The first `count` samples, a multiple of 32, in order. They are seen with what the model
        drew after their length, as T2M's protocol has it.

        Raises:
            InputError: damaged, or not finite.
        """
        shape = (BATCH, self.canvas, WIDTH)
        size = 4 * BATCH * self.canvas * WIDTH
        try:
            with self.opened().file as file:
                for first in range(0, count, BATCH):
                    content = file.read(size)
                    if len(content) < size:
                        raise EOFError(f"it ends before motion {first + BATCH}")
                    motions = np.frombuffer(content, np.float32).reshape(shape)
                    bad = ~np.isfinite(motions).all((1, 2))
                    if bad.any():
                        raise InputError(
                            f"{self.path}: motion {first + bad.argmax()} has numbers that are not "
                            "finite: draw the samples again"
                        )
                    part = slice(first, first + BATCH)
                    yield Batch(
                        torch.from_numpy(statistics.normalized(motions)),
                        torch.from_numpy(self.lengths[part]),
                        [self.captions[row] for row in self.rows[part]],
                    )
        except InputError:
            raise
        except DAMAGED as error:
            raise unreadable(self.path, error) from error
