"""Features of blocks as arrays: the mean token of every image, or all of its tokens.

python -m evaluations.features results/000-SiT-Ti-2-digits --blocks 2 4 --out features
"""

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro

from domains.reading import chosen, read
from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write, write_json

from .pooled import partial
from .study import Study, StudyFlags


@dataclass(frozen=True)
class Flags(StudyFlags):
    """Write the features of blocks: block_08.npy, float16 (N, D) or (N, tokens, D), and labels.npy.

    Under torchrun every process looks at its share of the images.

    python -m evaluations.features results/000-SiT-Ti-2-digits --blocks 2 4 --out features
    """

    part: Literal["train", "held-out"] = "train"  # which images
    images: int | None = None  # at most so many, a random choice; None: all
    pool: Literal["mean", "none"] = "mean"  # over the tokens


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    if flags.images is not None and flags.images < 1:
        raise InputError(f"--images {flags.images}: give 1 or more")
    ranks = distributed.start(flags.device)
    study = Study(flags, ranks)
    {"mean": write_means, "none": write_tokens}[flags.pool](study, flags)


def write_means(study: Study, flags: Flags) -> None:
    found = study.pooled(held_out=flags.part == "held-out", most=flags.images)

    def write() -> None:
        for block in found.blocks:
            with atomic_write(study.folder / f"block_{block:02d}.npy") as file:
                np.save(file, found.values[:, found.blocks.index(block)])
        finish(study, found.labels)

    study.ranks.from_main(write)


def write_tokens(study: Study, flags: Flags) -> None:
    """Streamed: a batch of tokens is held at a time.

    Raises:
        InputError: under torchrun.
    """
    if study.ranks.size > 1:
        raise InputError("--pool none writes one file in order: start it without torchrun")
    images = study.images(held_out=flags.part == "held-out")
    numbers = chosen(len(images), flags.images, flags.seed, "study")
    labels: list[np.ndarray] = []
    files: dict[int, np.memmap] = {}
    study.folder.mkdir(parents=True, exist_ok=True)
    at = 0
    for batch in read(images, numbers, flags.batch_size, study.ranks.device,
                      workers=flags.num_workers):  # fmt: skip
        for block, tokens in study.subject(batch).items():
            if block not in files:
                shape = (len(numbers), *tokens.shape[1:])
                path = partial(study.folder / f"block_{block:02d}.npy")
                files[block] = np.lib.format.open_memmap(path, "w+", "<f2", shape)
            files[block][at : at + len(tokens)] = tokens.half().cpu().numpy()
        labels.append(batch.y.cpu().numpy())
        at += len(batch.y)
    for block, file in files.items():
        file.flush()
        path = study.folder / f"block_{block:02d}.npy"
        os.replace(partial(path), path)
    finish(study, np.concatenate(labels))


def finish(study: Study, labels: np.ndarray) -> None:
    """The labels, and last the card: with it the folder is complete."""
    with atomic_write(study.folder / "labels.npy") as file:
        np.save(file, labels)
    write_json(study.folder / "features.json", study.subject.identity | {"images": len(labels)})
    print(f"{study.folder}: {len(labels)} images, blocks {list(study.subject.blocks)}")


if __name__ == "__main__":
    run(main)
