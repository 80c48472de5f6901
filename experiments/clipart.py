"""Clip art of Debian's openclipart-png as images by subject: drawings, in colours. No download.

python -m experiments.clipart --out data/openclipart
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image
from tqdm import tqdm

from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.random import seed_of

SIZE = 32  # pixels
UNSORTED = "unsorted"  # the folder that is no subject
HELD_OUT = 10  # one name of so many: no size or colour of its pictures is trained on


@dataclass(frozen=True)
class Flags:
    """Write a folder of PNG files for --dataset_name openclipart, OUT/train/SUBJECT/NAME.png and
    OUT/val/... Pictures are put on white and made square. Of equal ones the first is kept; those
    that cannot be read are named and passed over.

    $ apt-get install openclipart-png
    $ python -m experiments.clipart --out data/openclipart
    $ python train.py --preset evidence-cpu --dataset_name openclipart --data-path data/openclipart
    """

    out: Path = Path("data/openclipart")  # the folder to write
    pictures: Path = Path("/usr/share/openclipart/png")  # a folder of PNG files per subject
    at_least: int = 100  # pictures that a subject needs to be a class
    seed: int = 0  # of what is held out


def on_white(path: Path) -> Image.Image:
    """RGB, (SIZE, SIZE): the whole picture, where it is transparent white."""
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    square = Image.new("RGBA", (max(picture.size),) * 2, "white")
    square.alpha_composite(picture, tuple((max(picture.size) - n) // 2 for n in picture.size))
    return square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)


def distinct(paths: list[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """Each picture that Pillow opens, but for those that an earlier one equals."""
    seen = set()
    for path in tqdm(paths, unit="picture", disable=not speaks()):
        try:
            image = on_white(path)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            tqdm.write(f"passed over: {path}: {error}", file=sys.stderr)
            continue
        pixels = hashlib.sha256(image.tobytes()).digest()
        if pixels not in seen:
            seen.add(pixels)
            yield path, image


def held_out(path: Path, seed: int) -> bool:
    """By the picture's name, which its other sizes and colours share in another folder."""
    return seed_of("clipart", seed, path.stem) % HELD_OUT == 0


def write(flags: Flags) -> None:
    """
    Raises:
        InputError: the folder exists, there are no pictures, or too few subjects have
            pictures enough.
    """
    if flags.out.exists():
        raise InputError(f"{flags.out} exists already: give another --out, or remove it")
    paths = sorted(flags.pictures.rglob("*.png"))
    if not paths:
        raise InputError(
            f"no pictures in --pictures {flags.pictures}: apt-get install openclipart-png"
        )
    subjects = defaultdict(list)
    for path, image in distinct(paths):
        subjects[path.relative_to(flags.pictures).parts[0]].append((path, image))
    classes = {
        subject: found
        for subject, found in subjects.items()
        if len(found) >= flags.at_least and subject != UNSORTED
    }
    if len(classes) < 2:
        raise InputError(
            f"--at-least {flags.at_least}: {len(classes)} of {len(subjects)} subjects have so "
            "many pictures, and two are needed: lower it"
        )
    counts = {"train": 0, "val": 0}
    for subject, found in classes.items():
        for path, image in found:
            part = "val" if held_out(path, flags.seed) else "train"
            name = "-".join(path.relative_to(flags.pictures / subject).parts)
            with atomic_write(flags.out / part / subject / name) as file:
                image.save(file, "png")
            counts[part] += 1
    print(
        f"{counts['train']} training and {counts['val']} held-out images of {len(classes)} "
        f"subjects in {flags.out}"
    )


def main() -> None:
    write(tyro.cli(Flags, console_outputs=speaks()))


if __name__ == "__main__":
    run(main)
