"""The images a script makes of fonts' Han characters: their classes, and what is held out."""

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

import domains
from experiments.glyphs import HELD_OUT, SIZE, groups
from tests.commands import refused, succeed

WATER, TREE = "6c34-水", "6728-木"  # the classes of the two radicals with the most characters
EACH = 40  # characters of a class that the font has


def font_of(characters: list[int], path: Path) -> Path:
    """A font whose characters are boxes, each of another width; others are a smaller box."""

    def box(width: int, height: int):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((width, 0), (width, height), (0, height)):
            pen.lineTo(corner)
        pen.closePath()
        return pen.glyph()

    names = {number: f"u{number:x}" for number in characters}
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    boxes = {name: box(100 + 10 * i, 900) for i, name in enumerate(names.values())}
    builder.setupGlyf({".notdef": box(50, 50), **boxes})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fonts")
    characters = [number for radical in "水木" for number in list(groups()[radical])[:EACH]]
    return [font_of(characters, folder / f"{name}.ttf") for name in ("one", "other")]


@pytest.fixture(scope="module")
def made(tmp_path_factory, fonts):
    out = tmp_path_factory.mktemp("glyphs") / "made"
    succeed("experiments.glyphs", "--out", out, "--radicals", 2, "--fonts", *fonts)
    return out


def test_characters_are_grouped_by_their_radicals():
    for radical, characters in {"水": "水江河海", "木": "木林松桃", "人": "人仁們作"}.items():
        assert all(ord(character) in groups()[radical] for character in characters)
    assert sum(map(len, groups().values())) == 0x9FA6 - 0x4E00


def test_what_a_font_lacks_is_left_out(made):
    for folder in (WATER, TREE):
        assert len(list(made.glob(f"*/{folder}/*.png"))) == 2 * EACH
    assert {path.name for path in made.glob("*/*")} == {WATER, TREE}


def test_no_font_of_a_held_out_character_is_trained_on(made):
    train, held_out = (
        {path.name.split("-")[0] for path in made.glob(f"{part}/*/*.png")}
        for part in ("train", "val")
    )
    assert not train & held_out
    assert 0 < len(held_out) < 4 * HELD_OUT * len(train)


def test_images_are_white_on_black_and_distinct(made):
    images = [np.asarray(Image.open(path)) for path in sorted(made.glob("*/*/*-one.png"))]
    assert len({image.tobytes() for image in images}) > 0.8 * len(images)
    assert all(image.shape == (SIZE, SIZE) and image[0, 0] == 0 for image in images)
    assert all(image.max() == 255 for image in images)


def test_the_data_set_has_a_held_out_part(made):
    domain = domains.build("glyphs", data_path=str(made))
    assert domain.num_classes == 2
    assert len(domain.train_set()) + len(domain.held_out_set()) == 4 * EACH


def test_bad_flags_are_refused(made, tmp_path, fonts):
    assert "exists already" in refused("experiments.glyphs", "--out", made)
    out = tmp_path / "out"
    missing = refused("experiments.glyphs", "--out", out, "--fonts", tmp_path / "none.ttc")
    assert "apt-get install" in missing
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    for flags in (["--fonts", broken], ["--radicals", 1, "--fonts", *fonts]):
        said = refused("experiments.glyphs", "--out", out, *flags)
        assert str(flags[1]) in said
    said = refused("experiments.glyphs", "--out", out, "--radicals", 214, "--fonts", *fonts)
    assert "too few characters to hold some out" in said
    said = refused("experiments.glyphs", "--out", out, "--fonts", fonts[0], fonts[0])
    assert "--fonts names two files of one name" in said
    assert not out.exists()
