"""A small video data set in CLEVRER's layout: real images that move and bounce. No download.

python -m experiments.moving --out data/moving --source digits
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

import domains
from domains.clips import write_mp4
from domains.video import CLEVRER_PARTS, LABELS
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write, write_json
from runtime.random import seed_of

FPS = 25  # as CLEVRER
SIZE, OBJECT, FRAMES = 32, 14, 24  # pixels of a frame and of an object in it; frames of a video
NUMBERS = {"one": 1, "two": 2}  # of objects, all of one class
SPEEDS = {"slow": (0.4, 0.8), "fast": (1.2, 1.8)}  # pixels per frame
IN_A_FOLDER = 1000


@dataclass(frozen=True)
class Flags:
    """Write videos of one or two moving images of a class, slow or fast, and what each shows.

    Training videos show training images, those for validation held-out ones.
    """

    out: Path = Path("data/moving")  # the folder to write
    source: Literal["digits", "fashion-mnist"] = "digits"  # of the images
    train: int = 4000  # videos to train on
    validation: int = 1000  # held-out videos
    seed: int = 0  # of what moves, and how
    data_path: str | None = None  # folder of Fashion-MNIST, where it is not Debian's


class Images:
    """The images of one part of a data set, as objects."""

    def __init__(self, flags: Flags, part: str) -> None:
        domain = domains.build(flags.source, data_path=flags.data_path)
        own = domain.train_set(augment=False) if part == "train" else domain.held_out_set()
        self.images, self.labels = own.source.images[:, 0], own.source.labels
        self.names = own.source.class_names

    def drawn(self, label: int, draw: np.random.Generator) -> np.ndarray:
        """One of a class, uint8 (OBJECT, OBJECT)."""
        from PIL import Image

        image = Image.fromarray(self.images[draw.choice(np.flatnonzero(self.labels == label))])
        return np.asarray(image.resize((OBJECT, OBJECT), Image.Resampling.BICUBIC))


def video(images: Images, seed: int, number: int) -> tuple[np.ndarray, str]:
    """Frames, uint8 (FRAMES, SIZE, SIZE), and what they show; a function of its arguments."""
    draw = np.random.default_rng(seed_of("moving", seed, number))
    label = int(draw.integers(len(images.names)))
    count = list(NUMBERS)[draw.integers(len(NUMBERS))]
    speed = list(SPEEDS)[draw.integers(len(SPEEDS))]
    frames = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    for _ in range(NUMBERS[count]):
        image = images.drawn(label, draw)
        for frame, (top, left) in zip(frames, path(draw, *SPEEDS[speed]), strict=True):
            place = frame[top : top + OBJECT, left : left + OBJECT]
            np.maximum(place, image, out=place)
    return frames, name_of(images.names[label], count, speed)


def name_of(label: str, count: str, speed: str) -> str:
    return f"{count} {label}, {speed}"


def path(draw: np.random.Generator, slowest: float, fastest: float) -> np.ndarray:
    """Top and left of an object (FRAMES, 2), whole pixels: straight on until a wall throws it
    back."""
    room = SIZE - OBJECT
    angle, speed = draw.uniform(0, 2 * np.pi), draw.uniform(slowest, fastest)
    step = speed * np.array([np.sin(angle), np.cos(angle)])
    straight = draw.uniform(0, room, 2) + np.arange(FRAMES)[:, None] * step
    # Folded at both walls: there and back again is twice the room.
    return (room - np.abs(straight % (2 * room) - room)).round().astype(int)


def write(flags: Flags) -> None:
    """
    Raises:
        InputError: more videos than CLEVRER has numbers for, or some are there already.
    """
    if flags.out.exists():
        raise InputError(f"{flags.out} exists already: give another --out, or remove it")
    counts = {"train": flags.train, "validation": flags.validation}
    for part, count in counts.items():
        most = len(CLEVRER_PARTS[part])
        if not 1 <= count <= most:
            raise InputError(f"--{part} {count}: give 1 to {most}, which CLEVRER has numbers for")
    shown = {}
    for part, count in counts.items():
        images = Images(flags, part)
        for number in tqdm(CLEVRER_PARTS[part][:count], unit="video", disable=not speaks()):
            frames, what = video(images, flags.seed, number)
            first = number - number % IN_A_FOLDER
            folder = flags.out / f"video_{part}" / f"video_{first:05d}-{first + IN_A_FOLDER:05d}"
            with atomic_write(folder / f"video_{number:05d}.mp4") as file:
                write_mp4(file, np.stack([frames] * 3, axis=-1), FPS, crf=4)
            shown[f"video_{number:05d}"] = what
    classes = [name_of(*each) for each in product(images.names, NUMBERS, SPEEDS)]
    labels = {name: classes.index(what) for name, what in shown.items()}
    write_json(flags.out / LABELS, {"classes": classes, "videos": labels})
    print(f"{sum(counts.values())} videos in {flags.out}")


def main() -> None:
    write(tyro.cli(Flags, console_outputs=speaks()))


if __name__ == "__main__":
    run(main)
