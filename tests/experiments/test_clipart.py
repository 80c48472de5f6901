"""The images a script makes of clip art: on white, distinct, and what is held out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import domains
from experiments.clipart import SIZE, held_out
from tests.commands import call, refused, succeed

EACH = 30  # pictures of a subject


def drawing(number: int, size: int = 48) -> Image.Image:
    """A box on a transparent ground whose hidden colour is black; each of another colour."""
    image = Image.new("RGBA", (size, size // 2), (0, 0, 0, 0))
    image.paste((200, 5 * number, 40, 255), (size // 4, size // 8, 3 * size // 4, 3 * size // 8))
    return image


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two subjects of EACH drawings, in two sizes that are the same picture but for their size,
    one of too few, the unsorted ones, a copy, a broken file and one in a palette."""
    root = tmp_path_factory.mktemp("png")
    for subject, first in (("animals", 0), ("tools", 100)):
        for folder, size in (("small", 48), ("large/of them", 80)):
            (root / subject / folder).mkdir(parents=True)
            for i in range(EACH):
                image = drawing((first + i) % 51, size)
                image.putpixel((0, 0), (0, first, 0, 255))
                image.save(root / subject / folder / f"{subject}{i}.png")
    for folder in ("logos", "unsorted"):
        (root / folder).mkdir()
    drawing(3).save(root / "logos" / "one.png")
    for i in range(2 * EACH):
        drawing(i % 51, 64 + i).save(root / "unsorted" / f"{i}.png")
    copy = Image.open(root / "animals" / "small" / "animals0.png")
    copy.save(root / "animals" / "small" / "copy.png")
    copy.convert("P").save(root / "animals" / "small" / "palette.png")
    (root / "animals" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory, pictures):
    out = tmp_path_factory.mktemp("clipart") / "made"
    words = ["--out", out, "--pictures", pictures, "--at-least", 2 * EACH]
    return out, succeed("experiments.clipart", *words)


def test_subjects_with_pictures_enough_are_the_classes(made):
    out, _ = made
    assert {path.name for path in out.glob("*/*")} == {"animals", "tools"}
    domain = domains.build("openclipart", data_path=str(out))
    assert domain.num_classes == 2
    written = list(out.rglob("*.png"))
    assert len(domain.train_set()) + len(domain.held_out_set()) == len(written)


def test_transparent_is_white_and_the_whole_picture_is_there(made):
    out, _ = made
    for path in out.rglob("*small*.png"):
        image = np.asarray(Image.open(path))
        assert image.shape == (SIZE, SIZE, 3)
        assert (image[-1] == 255).all()  # of the square that a wide picture is put on
        assert (image[SIZE // 2, SIZE // 2, 0], image[SIZE // 2, SIZE // 2, 2]) == (200, 40)
        assert (image[SIZE // 2, 2] == 255).all()  # of the picture, where black is hidden


def test_no_two_images_are_equal(made):
    out, _ = made
    images = [np.asarray(Image.open(path)).tobytes() for path in out.rglob("*.png")]
    assert len(set(images)) == len(images)
    assert not list(out.rglob("*copy.png"))
    assert not list(out.rglob("*palette.png")), "a palette is read as the colours it stands for"


def test_no_size_of_a_held_out_picture_is_trained_on(made):
    out, _ = made
    train, held_out = (
        {path.stem.split("-")[-1] for path in out.glob(f"{part}/*/*.png")}
        for part in ("train", "val")
    )
    assert not train & held_out
    assert 0 < len(held_out) < len(train)


def test_what_cannot_be_read_is_named_and_passed_over(made):
    _, done = made
    assert "passed over" in done.err and "broken.png" in done.err


def refused_after_reading(*words) -> str:
    """The sentence below the bar of progress."""
    done = call("experiments.clipart", *words)
    assert done.code == 2
    return done.err.splitlines()[-1]


# Names whose pictures are trained on, also with "q-" before them.
TRAINED_ON = [
    name
    for name in map("{}.png".format, range(100))
    if not any(held_out(Path(prefix + name), seed=0) for prefix in ("", "q-"))
]


def test_pictures_are_not_lost_under_one_name(tmp_path):
    name = TRAINED_ON[0]
    (tmp_path / "png" / "animals" / "p" / "q").mkdir(parents=True)
    drawing(1).save(tmp_path / "png" / "animals" / "p" / "q" / name)
    drawing(2).save(tmp_path / "png" / "animals" / "p" / f"q-{name}")
    out = tmp_path / "out"
    said = refused_after_reading("--out", out, "--pictures", tmp_path / "png")
    assert "rename one" in said and not out.exists()


def test_a_subject_with_nothing_to_hold_out_is_refused(tmp_path):
    for subject, first in (("animals", 0), ("tools", 20)):
        (tmp_path / "png" / subject).mkdir(parents=True)
        for i, name in enumerate(TRAINED_ON[:2]):
            drawing(first + i).save(tmp_path / "png" / subject / name)
    out = tmp_path / "out"
    words = ["--out", out, "--pictures", tmp_path / "png", "--at-least", 2]
    said = refused_after_reading(*words)
    assert "animals has too few pictures to hold some out" in said and not out.exists()


def test_bad_flags_are_refused(made, pictures, tmp_path):
    assert "exists already" in refused("experiments.clipart", "--out", made[0])
    out = tmp_path / "out"
    said = refused("experiments.clipart", "--out", out, "--pictures", tmp_path)
    assert "apt-get install openclipart-png" in said
    words = ["--out", out, "--pictures", pictures, "--at-least", 1000]
    assert "--at-least 1000" in refused_after_reading(*words)
    assert not out.exists()
