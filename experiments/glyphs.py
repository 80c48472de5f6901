"""Han characters from a system's fonts as images: many, all distinct, of parts. No download.

python -m experiments.glyphs --out data/glyphs
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.random import seed_of

SIZE, GLYPH = 32, 28  # pixels of an image, and of the em square in it
# Unicode has the Kangxi radicals in order, and this block of characters is ordered by their
# radicals, each group begun by the radical itself.
RADICALS = range(0x2F00, 0x2FD6)
END = 0x9FA6  # of the characters in that order
HELD_OUT = 0.1  # of the characters: none of their fonts' forms is trained on
FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/opentype/noto/NotoSerifCJK-Bold.ttc",
    "/usr/share/fonts/truetype/arphic/uming.ttc",
    "/usr/share/fonts/truetype/arphic/ukai.ttc",
)
PACKAGES = "fonts-noto-cjk fonts-arphic-uming fonts-arphic-ukai"  # of Debian


@dataclass(frozen=True)
class Flags:
    """Write a folder of PNG files for --dataset_name glyphs, OUT/train/RADICAL/CHARACTER-FONT.png
    and OUT/val/... The classes are the radicals with the most characters.

    $ python -m experiments.glyphs --out data/glyphs
    $ python train.py --preset evidence-cpu --dataset_name glyphs --data-path data/glyphs
    """

    out: Path = Path("data/glyphs")  # the folder to write
    radicals: int = 32  # how many classes
    fonts: tuple[Path, ...] = tuple(map(Path, FONTS))  # one picture of a character by each
    seed: int = 0  # of what is held out


def groups() -> dict[str, range]:
    """The characters of every radical, by the radical, the largest group first."""
    first = [ord(unicodedata.normalize("NFKC", chr(radical))) for radical in RADICALS]
    found = {chr(a): range(a, b) for a, b in zip(first, [*first[1:], END], strict=True)}
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def opened(path: Path) -> ImageFont.FreeTypeFont:
    if not path.is_file():
        raise InputError(f"no font {path}: apt-get install {PACKAGES}, or give --fonts")
    try:
        return ImageFont.truetype(path, GLYPH)
    except OSError as error:
        raise InputError(f"{path}: {error}: give --fonts that FreeType reads") from None


def drawn(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """White on black, (SIZE, SIZE)."""
    image = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(image).text((SIZE / 2, SIZE / 2), character, 255, font, anchor="mm")
    return image


def images(characters: range, fonts: dict[str, ImageFont.FreeTypeFont]) -> Iterator[tuple]:
    """Number of a character, name of a font and image, where the font has the character."""
    for name, font in fonts.items():
        missing = drawn(font, "\uffff").tobytes()
        for number in characters:
            image = drawn(font, chr(number))
            if image.tobytes() != missing:
                yield number, name, image


def held_out(radical: str, characters: range, seed: int) -> np.ndarray:
    """Which of a radical's characters are: bool (characters,).

    Raises:
        InputError: all or none, since they are few.
    """
    draw = np.random.default_rng(seed_of("glyphs", seed, ord(radical)))
    found = draw.random(len(characters)) < HELD_OUT
    if found.all() or not found.any():
        raise InputError(f"{radical} has too few characters to hold some out: lower --radicals")
    return found


def write(flags: Flags) -> None:
    """
    Raises:
        InputError: the folder exists, more radicals than there are or have characters enough, a
            font is missing, cannot be read, has no Han characters or another one's name.
    """
    if flags.out.exists():
        raise InputError(f"{flags.out} exists already: give another --out, or remove it")
    if not 2 <= flags.radicals <= len(RADICALS):
        raise InputError(f"--radicals {flags.radicals}: give 2 to {len(RADICALS)}")
    fonts = {path.stem: opened(path) for path in flags.fonts}
    if len(fonts) < len(flags.fonts):
        raise InputError("--fonts names two files of one name, which images are named after")
    counts = {"train": 0, "val": 0}
    chosen = list(groups().items())[: flags.radicals]
    unseen = {radical: held_out(radical, group, flags.seed) for radical, group in chosen}
    for radical, characters in tqdm(chosen, unit="radical", disable=not speaks()):
        for number, name, image in images(characters, fonts):
            part = "val" if unseen[radical][number - characters.start] else "train"
            folder = flags.out / part / f"{ord(radical):x}-{radical}"
            with atomic_write(folder / f"{number:x}-{name}.png") as file:
                image.save(file, "png")
            counts[part] += 1
    if not all(counts.values()):
        raise InputError(f"the fonts have {sum(counts.values())} such characters: too few")
    print(f"{counts['train']} training and {counts['val']} held-out images in {flags.out}")


def main() -> None:
    write(tyro.cli(Flags, console_outputs=speaks()))


if __name__ == "__main__":
    run(main)
