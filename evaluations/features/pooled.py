"""Mean tokens of every block of many images, streamed to a memory map: never more than a batch of
tokens is held, 4,000 images x 28 blocks of XL/2 are 258 MB on disk."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from domains import DataSet
from domains.reading import read
from runtime.distributed import Ranks
from runtime.entry import speaks
from runtime.errors import LocalError
from runtime.files import read_json, write_json

from .subject import Subject


class Pooled(NamedTuple):
    """Features of images in the order that was asked for."""

    blocks: tuple[int, ...]
    values: np.ndarray  # float16 (N, blocks, D), a memory map
    labels: np.ndarray  # int64 (N,), the images' classes

    def of(self, block: int) -> Tensor:
        """(N, D) float32."""
        return torch.from_numpy(self.values[:, self.blocks.index(block)].astype(np.float32))

    @property
    def classes(self) -> Tensor:
        return torch.from_numpy(self.labels)


def pooled(
    subject: Subject, images: DataSet, numbers: Sequence[int], folder: Path, ranks: Ranks, *,
    data: str, batch_size: int = 64, workers: int = 0, mirrored: bool = False,
) -> Pooled:  # fmt: skip
    """The mean over the tokens of every block, from the folder if it is there already.

    Every rank writes the rows of its share of the images.

    Args:
        data: what tells these images from others, their fingerprint.
        mirrored: of the mirror images.

    Raises:
        LocalError: a corrupt image, or features that float16 does not hold.
    """
    identity = subject.identity | {
        "blocks": list(subject.blocks), "data": data, "mirrored": mirrored,
        "numbers": hashlib.sha256(np.asarray(numbers, np.int64)).hexdigest(),
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    files = Files(folder / f"{name}.npy", folder / f"{name}.labels.npy", folder / f"{name}.json")
    if not ranks.from_main(files.complete):
        write(subject, images, numbers, files, ranks, batch_size, workers, mirrored)
        ranks.from_main(lambda: files.finish(identity))
    return Pooled(
        subject.blocks,
        np.load(files.values, mmap_mode="r", allow_pickle=False),
        np.load(files.labels, allow_pickle=False),
    )


class Files(NamedTuple):
    values: Path
    labels: Path
    card: Path  # written last: with it the others are complete

    def complete(self) -> bool:
        return self.card.exists() and bool(read_json(self.card))

    def finish(self, identity: dict[str, Any]) -> None:
        for path in (self.values, self.labels):
            os.replace(partial(path), path)
        write_json(self.card, identity)


def partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def write(
    subject: Subject, images: DataSet, numbers: Sequence[int], files: Files, ranks: Ranks,
    batch_size: int, workers: int, mirrored: bool,
) -> None:  # fmt: skip
    own = np.array_split(np.arange(len(numbers)), ranks.size)[ranks.rank]
    width = ranks.from_main(lambda: width_of(subject, images, numbers, ranks.device))
    shapes = {files.values: ("<f2", (len(numbers), len(subject.blocks), width)),
              files.labels: ("<i8", (len(numbers),))}  # fmt: skip

    def create() -> None:
        files.values.parent.mkdir(parents=True, exist_ok=True)
        for path, (dtype, shape) in shapes.items():
            np.lib.format.open_memmap(partial(path), "w+", dtype, shape).flush()

    ranks.from_main(create)
    values, labels = (np.load(partial(path), mmap_mode="r+") for path in shapes)
    at = int(own[0]) if len(own) else 0
    asked = [numbers[row] for row in own]
    batches = read(images, asked, batch_size, ranks.device, workers=workers)
    bar = tqdm(total=len(own), unit="image", desc=subject.name, disable=not speaks(), leave=False)
    for batch in batches:
        if mirrored:
            batch = batch._replace(raw=batch.raw.flip(-1))
        tokens = subject(batch)
        means = torch.stack([tokens[block].mean(1) for block in subject.blocks], dim=1).half()
        if not means.isfinite().all():
            raise LocalError(
                f"{subject.name} has features beyond float16: its blocks have diverged"
            )
        values[at : at + len(means)] = means.cpu().numpy()
        labels[at : at + len(means)] = batch.y.cpu().numpy()
        at += len(means)
        bar.update(len(means))
    bar.close()
    values.flush()
    labels.flush()
    ranks.barrier()


def width_of(
    subject: Subject, images: DataSet, numbers: Sequence[int], device: torch.device
) -> int:
    """D, which all blocks share, by a look at one image."""
    tokens = subject(next(read(images, numbers[:1], 1, device)))
    return tokens[subject.blocks[0]].shape[-1]
