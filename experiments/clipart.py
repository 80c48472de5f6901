"""Clip art of Debian's openclipart-png as images by subject: drawings, in colours. No download.

python -m experiments.clipart --out data/openclipart
"""

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
    OUT/val/... Pictures are put on white and made square. Of equal ones the first is kept,
    be it of another subject; those that cannot be read are named and passed over.

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
    """The pictures that Pillow opens, but for those that an earlier one equals; what it does not
    open is named."""
    seen = set()
    for path in tqdm(paths, unit="picture", disable=not speaks()):
        try:
            image = on_white(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            tqdm.write(f"passed over: {path}: {error}", file=sys.stderr)
            continue
        if (pixels := image.tobytes()) not in seen:
            seen.add(pixels)
            yield path, image


def held_out(path: Path, seed: int) -> bool:
    """By the picture's name, which its other sizes and colours share in another folder."""
    return seed_of("clipart", seed, path.stem) % HELD_OUT == 0


def planned(flags: Flags, paths: list[Path]) -> dict[Path, Image.Image]:
    """The images of the subjects that have enough, by the files to write.

    Raises:
        InputError: these are fewer than two subjects, one of them has no picture to train on or
            none to hold out, or two pictures would have one name.
    """
    subjects = defaultdict(dict)
    for path, image in distinct(paths):
        subject, *folders = path.relative_to(flags.pictures).parts
        part = "val" if held_out(path, flags.seed) else "train"
        file = Path(part, subject, "-".join(folders))
        if file in subjects[subject]:
            raise InputError(f"{path}: another picture is named {file}, too: rename one")
        subjects[subject][file] = image
    enough = {name: own for name, own in subjects.items() if len(own) >= flags.at_least}
    if len(enough) < 2:
        raise InputError(
            f"--at-least {flags.at_least}: {len(enough)} of {len(subjects)} subjects have so "
            "many pictures, and two are needed: lower it"
        )
    for name, own in enough.items():
        if len({file.parts[0] for file in own}) < 2:
            raise InputError(
                f"--at-least {flags.at_least}: {name} has too few pictures to hold some out: "
                "raise it"
            )
    return {file: image for own in enough.values() for file, image in own.items()}


def write(flags: Flags) -> None:
    """
    Raises:
        InputError: the folder exists, there are no pictures, or as `planned`.
    """
    if flags.out.exists():
        raise InputError(f"{flags.out} exists already: give another --out, or remove it")
    paths = sorted(flags.pictures.glob("*/**/*.png"))
    if not paths:
        raise InputError(
            f"no pictures in --pictures {flags.pictures}: apt-get install openclipart-png"
        )
    paths = [path for path in paths if path.relative_to(flags.pictures).parts[0] != UNSORTED]
    images = planned(flags, paths)
    for file, image in images.items():
        with atomic_write(flags.out / file) as opened:
            image.save(opened, "png")
    held = sum(file.parts[0] == "val" for file in images)
    print(
        f"{len(images) - held} training and {held} held-out images of "
        f"{len({file.parts[1] for file in images})} subjects in {flags.out}"
    )


def main() -> None:
    write(tyro.cli(Flags, console_outputs=speaks()))


if __name__ == "__main__":
    run(main)
