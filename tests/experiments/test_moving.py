"""The videos that a script makes of real images: how they move, and the files they are in."""

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("av")

import domains
from domains import Draws
from domains.clips import Cut, decoded
from experiments import moving
from experiments.moving import FRAMES, NUMBERS, OBJECT, SIZE, SPEEDS
from tests.commands import call, refused


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("moving") / "made"
    result = call("experiments.moving", "--out", out, "--train", 30, "--validation", 10)
    assert result.code == 0, result.err
    return out


@pytest.fixture(scope="module")
def images():
    return {part: moving.Images(moving.Flags(), part) for part in ("train", "validation")}


def test_the_files_are_as_clevrers(made):
    names = {str(path.relative_to(made)) for path in made.rglob("*.mp4")}
    train, held_out = "video_train/video_00000-01000/", "video_validation/video_10000-11000/"
    assert names == {f"{train}video_{number:05d}.mp4" for number in range(30)} | {
        f"{held_out}video_{number:05d}.mp4" for number in range(10_000, 10_010)
    }
    domain = domains.build("moving", data_path=str(made))
    assert domain.shape == (1, 8, 32, 32) and domain.num_classes == 40
    assert len(domain.train_set()) == 30 and len(domain.held_out_set()) == 10
    batch = domain.train_set().__getitems__(Draws.plain(range(30))).checked()
    assert batch.raw.shape == (30, 1, 8, 32, 32) and len(set(batch.y.tolist())) > 10
    moved = (batch.raw[:, :, 0].int() - batch.raw[:, :, -1].int()).abs().amax((1, 2, 3))
    assert (moved > 50).all()


def test_a_video_is_a_function_of_the_seed_and_its_number(made, images):
    labels = json.loads((made / "labels.json").read_text())
    for part, number in (("train", 7), ("validation", 10_003)):
        frames, what = moving.video(images[part], 0, number)
        assert labels["classes"][labels["videos"][f"video_{number:05d}"]] == what
        (path,) = made.rglob(f"video_{number:05d}.mp4")
        read = decoded(path, Cut(FRAMES, 1, (SIZE, SIZE), channels=1), place=0.0)
        assert np.abs(read[0].astype(int) - frames).max() <= 12 and frames.max() > 150
        other, _ = moving.video(images[part], 1, number)
        assert not np.array_equal(frames, other)


def test_validation_shows_images_that_training_does_not(images):
    train, held_out = (
        {image.tobytes() for image in images[part].images} for part in ("train", "validation")
    )
    assert not train & held_out and len(train) == 1297


@pytest.mark.parametrize("speed", SPEEDS)
def test_objects_go_straight_on_at_their_speed_until_a_wall_throws_them_back(speed):
    bounced = 0
    for seed in range(40):
        places = moving.path(np.random.default_rng(seed), *SPEEDS[speed])
        assert places.min() >= 0 and places.max() <= SIZE - OBJECT
        steps = np.diff(places, axis=0)
        turns = (np.sign(steps[1:]) * np.sign(steps[:-1]) < 0).sum()
        bounced += turns > 0
        if not turns:
            travelled = np.linalg.norm(places[-1] - places[0]) / (FRAMES - 1)
            low, high = SPEEDS[speed]
            assert travelled <= high + 0.1
    assert bounced > 5


def test_labels_say_class_number_and_speed(images):
    """One object never covers more than an object's area; two of them do."""
    seen = Counter()
    for number in range(40):
        frames, what = moving.video(images["train"], 0, number)
        count, rest = what.split(" ", 1)
        label, speed = rest.split(", ")
        assert label in images["train"].names and speed in SPEEDS
        areas = [np.ptp(np.argwhere(frame > 60), axis=0).max() for frame in frames]
        if NUMBERS[count] == 1:
            assert max(areas) < OBJECT
        seen[count, max(areas) >= OBJECT] += 1
    assert seen["two", True] > 10 > seen["two", False]


def test_videos_that_are_there_are_not_overwritten(made, tmp_path):
    assert "exists already" in refused("experiments.moving", "--out", made)
    said = refused("experiments.moving", "--out", tmp_path / "x", "--validation", 5001)
    assert "--validation 5001: give 1 to 5000" in said and not (tmp_path / "x").exists()
