"""Mean tokens of every block of many images, streamed to disk: never more than a batch of tokens is
held. 4,000 images x 28 blocks of XL/2 are 258 MB."""

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from domains import DataSet
from domains.reading import read
from runtime.distributed import Ranks
from runtime.entry import speaks
from runtime.errors import LocalError
from runtime.files import write_json

from .rows import Rows
from .subject import Subject


class Pooled(NamedTuple):
    """Features of images in the order that was asked for."""

    blocks: tuple[int, ...]
    values: np.ndarray  # float16 (N, blocks, D), a memory map
    labels: np.ndarray  # int64 (N,), the images' classes; (N, K) of 0 and 1, where one has several

    def of(self, block: int) -> Tensor:
        """(N, D) float32."""
        return torch.from_numpy(self.values[:, self.blocks.index(block)].astype(np.float32))

    @property
    def classes(self) -> Tensor:
        return torch.from_numpy(self.labels)


class Reading(NamedTuple):
    """Which images are looked at, and how they are read."""

    images: DataSet
    numbers: Sequence[int]
    data: str  # what tells these images from others: their fingerprint and shape
    batch_size: int = 64
    workers: int = 0
    mirrored: bool = False  # their mirror images


def pooled(subject: Subject, reading: Reading, folder: Path, ranks: Ranks) -> Pooled:
    """The mean over the tokens of every block, from the folder if it is there already.

    Raises:
        LocalError: a corrupt image, or features that float16 does not hold.
        ValueError: blocks of unequal width.
    """
    identity = subject.identity | {
        "blocks": list(subject.blocks), "data": reading.data, "mirrored": reading.mirrored,
        "numbers": hashlib.sha256(np.asarray(reading.numbers, np.int64)).hexdigest(),
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    card = folder / f"{name}.json"  # written last: with it the others are complete
    files = folder / f"{name}.npy", folder / f"{name}.labels.npy"
    if not ranks.from_main(lambda: all(path.exists() for path in (card, *files))):
        tokens_of, label_of = ranks.from_main(lambda: shapes_of(subject, reading))
        widths = {width for _, width in tokens_of}
        if len(widths) > 1:
            raise ValueError(f"{subject.name} has blocks of unequal width: look at them one by one")
        shape = (len(reading.numbers), len(subject.blocks), *widths)
        values = Rows(files[0], "<f2", shape)
        labels = Rows(files[1], "<i8", (len(reading.numbers), *label_of))

        def keep(first: int, tokens: dict[int, Tensor], y: Tensor) -> None:
            means = [tokens[block].mean(1) for block in subject.blocks]
            values.write(first, torch.stack(means, dim=1))
            labels.write(first, y)

        look(subject, reading, ranks, [values, labels], keep)
        ranks.from_main(lambda: write_json(card, identity))
    return Pooled(
        subject.blocks,
        np.load(files[0], mmap_mode="r", allow_pickle=False),
        np.load(files[1], allow_pickle=False),
    )


def shapes_of(subject: Subject, reading: Reading) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """(N, D) of an image's tokens, by block, and () of its class or (K,) of its labels, by a look
    at the first one."""
    batch = next(read(reading.images, reading.numbers[:1], 1, subject.device, skippable=True))
    shapes = [tuple(tokens.shape[1:]) for tokens in subject(batch).values()]
    return shapes, tuple(batch.y.shape[1:])


def look(
    subject: Subject, reading: Reading, ranks: Ranks, arrays: Sequence[Rows],
    keep: Callable[[int, dict[int, Tensor], Tensor], None],
) -> None:  # fmt: skip
    """Fill arrays with what a subject sees; every rank looks at its share of the images.

    Args:
        keep: of (first row, tokens by block, labels).

    Raises:
        LocalError: a corrupt image, or features that are not finite.
    """

    attempt = ranks.from_main(lambda: secrets.token_hex(4))
    for array in arrays:
        array.attempt = attempt

    def create() -> None:
        try:
            for array in arrays:
                array.create()
        except OSError:
            discard(arrays)
            raise

    ranks.from_main(create)
    own = np.array_split(np.arange(len(reading.numbers)), ranks.size)[ranks.rank]
    at = int(own[0]) if len(own) else 0
    asked = [reading.numbers[row] for row in own]
    batches = read(
        reading.images, asked, reading.batch_size, ranks.device, workers=reading.workers,
        skippable=True,
    )  # fmt: skip
    bar = tqdm(total=len(own), unit="image", desc=subject.name, disable=not speaks(), leave=False)
    try:
        with bar:
            for batch in batches:
                if reading.mirrored:
                    batch = batch._replace(raw=batch.raw.flip(-1))
                keep(at, subject(batch), batch.y)
                at += len(batch.y)
                bar.update(len(batch.y))
    except ValueError as error:
        discard(arrays)
        raise LocalError(f"{subject.name}: {error}") from error
    except BaseException:
        discard(arrays)
        raise
    ranks.barrier()
    ranks.from_main(lambda: [array.finish() for array in arrays] and None)


def discard(arrays: Sequence[Rows]) -> None:
    for array in arrays:
        array.discard()
