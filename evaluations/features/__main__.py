"""Features of blocks as arrays: the mean token of every image, or all of its tokens.

python -m evaluations.features results/000-SiT-Ti-2-digits --blocks 2 4 --out features
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tyro
from torch import Tensor

from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write, write_json
from runtime.untrusted import read_json

from .pooled import look, shapes_of
from .rows import Rows
from .study import Study, StudyFlags


@dataclass(frozen=True)
class Flags(StudyFlags):
    """Write the features of blocks: block_08.npy, float16 (N, D) or (N, tokens, D), labels.npy and
    numbers.npy, which images they are of, and features.json, what they depend on.

    Under torchrun every process looks at its share of the images.

    $ python -m evaluations.features results/000-SiT-Ti-2-digits --blocks 2 4 --out features
    """

    part: Literal["train", "held-out"] = "train"  # which images
    images: int | None = None  # at most so many, a random choice; None: all
    pool: Literal["mean", "none"] = "mean"  # over the tokens


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start(flags.device)
    study = Study(flags, ranks)
    subject, folder = study.subject, study.folder
    reading = study.reading(held_out=flags.part == "held-out", most=flags.images)
    card = subject.identity | {
        "network_name": subject.name, "blocks": list(subject.blocks), "data": reading.data,
        "data_set": study.domain.name, "part": flags.part, "pool": flags.pool,
        "images": len(reading.numbers),
    }  # fmt: skip
    if ranks.from_main(lambda: is_there(folder / "features.json", card)):
        return ranks.from_main(lambda: print(f"{folder} is finished"))
    shapes, label = ranks.from_main(lambda: shapes_of(subject, reading))
    count, pools = len(reading.numbers), flags.pool == "mean"
    blocks = {
        block: Rows(
            folder / f"block_{block:02d}.npy", "<f2", (count, *(shape[1:] if pools else shape))
        )
        for block, shape in zip(subject.blocks, shapes, strict=True)
    }
    labels = Rows(folder / "labels.npy", "<i8", (count, *label))

    def keep(first: int, tokens: dict[int, Tensor], y: Tensor) -> None:
        for block, rows in blocks.items():
            rows.write(first, tokens[block].mean(1) if pools else tokens[block])
        labels.write(first, y)

    look(subject, reading, ranks, [*blocks.values(), labels], keep)

    def finish() -> None:
        with atomic_write(folder / "numbers.npy") as file:
            np.save(file, np.asarray(reading.numbers, np.int64))
        write_json(folder / "features.json", card)  # last: with it the folder is complete
        print(f"{folder}: {count} images of {study.domain.name}, blocks {list(subject.blocks)}")

    ranks.from_main(finish)


def is_there(path: Any, card: dict[str, Any]) -> bool:
    """
    Raises:
        InputError: features of another network, of other images, or of another view of them.
    """
    if not path.exists():
        return False
    there = read_json(path)
    if differing := [key for key, value in card.items() if there.get(key) != value]:
        raise InputError(
            f"{path.parent} holds features of another {differing[0]}: give another --out"
        )
    return True


if __name__ == "__main__":
    run(main)
