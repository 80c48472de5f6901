"""The motions that a script makes: what the figures do, and the files they are in."""

import re

import numpy as np
import pytest
import torch

from domains.skeleton import BONES, JOINTS, MIRROR, features_of, joints_of, mirrored
from experiments import gaits, motions
from experiments.gaits import Act
from experiments.motions import ACTIONS, COUNTS, PACES, PEOPLE, ROUND, SIDES, Line
from tests.commands import call, refused

CLIPS = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("motions") / "made"
    result = call("experiments.motions", "--out", out, "--clips", CLIPS)
    assert result.code == 0, result.err
    return out


@pytest.fixture(scope="module")
def vectors(made):
    names = (made / "HumanML3D" / "all.txt").read_text().split()
    return {name: np.load(made / "HumanML3D" / "new_joint_vecs" / f"{name}.npy") for name in names}


def lines_of(made, name):
    path = made / "HumanML3D" / "texts" / f"{name}.txt"
    return [line.split("#") for line in path.read_text().splitlines()]


def done(action, seconds=4.0, **how):
    """{joint: (T, 3)} of one who does it."""
    joints = gaits.moved(gaits.together([Act(action, seconds, **how)]), size=1.0)
    return {name: joints[:, number] for number, name in enumerate(JOINTS)}


def soles(joints):
    toes, heels = joints[:, [10, 11], 1], joints[:, [7, 8], 1] - gaits.HEEL
    return np.concatenate([toes, heels], axis=1).min(axis=1)


@pytest.mark.parametrize("action", ACTIONS)
def test_bones_keep_their_length_and_a_foot_is_on_the_floor(action):
    joints = gaits.moved(gaits.together([Act(action, 4.0, count=2)]), size=1.0)
    for parent, child in BONES:
        length = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
        np.testing.assert_allclose(length, length[0], atol=1e-9)
    assert soles(joints).min() > -0.03
    airborne = {"jump": 0.3, "jump forward": 0.3, "jumping jacks": 0.1, "run": 0.1}
    assert soles(joints).max() < airborne.get(action, 0.02)
    assert np.abs(np.diff(joints, axis=0)).max() * 20 < 12  # metres a second


@pytest.mark.parametrize("action", ["bow", "wave", "sit", "squat", "punch"])
def test_who_stands_does_not_slide(action):
    feet = done(action, count=2)
    for side in SIDES:
        path = feet[f"{side} ankle"][:, [0, 2]]
        assert np.linalg.norm(path - path[0], axis=-1).max() < 0.05


def test_figures_do_what_they_are_asked_to():
    def ahead(action):
        return done(action)["pelvis"][-1, 2]

    assert ahead("run") > 1.5 * ahead("walk") > 1.5 * 2 and ahead("walk back") < -2
    assert ahead("jump forward") > 0.4 > abs(ahead("jump"))
    assert done("jump")["pelvis"][:, 1].max() > done("walk")["pelvis"][:, 1].max() + 0.15
    for low in ("squat", "sit", "pick up", "sit and stand"):
        assert done(low)["pelvis"][:, 1].min() < 0.75
    assert done("bow")["head"][:, 1].min() < 1.3 < 1.5 < done("bow")["head"][0, 1]
    assert done("sit")["pelvis"][-1, 1] < 0.7 < 0.9 < done("sit and stand")["pelvis"][-1, 1]
    assert (done("raise arms")["left wrist"] - done("raise arms")["head"])[40, 1] > 0.2


@pytest.mark.parametrize("side", SIDES)
def test_each_side_does_its_own(side):
    sign, other = (1, SIDES[side]) if side == "left" else (-1, SIDES[side])
    for action, part, high in (("wave", "wrist", 1.4), ("raise arm", "wrist", 1.6),
                               ("kick", "foot", 0.4), ("punch", "wrist", 1.2)):  # fmt: skip
        places = done(action, side=side)
        assert places[f"{side} {part}"][:, 1].max() > high
        if action != "punch":
            assert places[f"{other} {part}"][:, 1].max() < high
    assert sign * done("sidestep", side=side)["pelvis"][-1, 0] > 0.4
    across = done("quarter turn", side=side)
    assert -sign * (across["left hip"] - across["right hip"])[-1, 2] > 0.1
    assert sign * done("circle", side=side)["pelvis"][:, 0].mean() > 0.3


def test_left_and_right_are_mirror_images():
    one = gaits.moved(gaits.together([Act("kick", 3.0, side="left")]), size=1.0)
    other = gaits.moved(gaits.together([Act("kick", 3.0, side="right")]), size=1.0)
    np.testing.assert_allclose(one[:, MIRROR] * (-1, 1, 1), other, atol=1e-9)


def test_every_word_has_a_token():
    for action in ACTIONS.values():
        for template in action.phrases:
            for side in SIDES:
                for their in set(PEOPLE.values()):
                    fields = dict(side=side, round=ROUND[side], their=their)
                    for pace in PACES.values():
                        for count in COUNTS.values():
                            Line(template.format(pace=pace, count=count, **fields)).text()
    for template in (*motions.AT_ONCE, *motions.THEN, *PEOPLE):
        Line(template.replace("{}", "walks")).text()


def test_tokens_are_lemmas_with_their_tags_as_spacy_gives_them():
    line = Line("a man kicks with his left leg, then waves his hands.", 1.0, 3.5)
    assert line.text() == (
        "a man kicks with his left leg, then waves his hands."
        "#a/DET man/NOUN kick/VERB with/ADP his/DET left/ADJ leg/NOUN then/ADV wave/VERB his/DET "
        "hand/NOUN#1.0#3.5\n"
    )


def test_what_is_said_of_a_mirror_image_is_mirrored():
    line = Line("a man turns left, then walks clockwise to the right.", 0.0, 2.5)
    expected = "a man turns right, then walks counterclockwise to the left."
    assert line.mirrored() == line._replace(caption=expected)


def test_motions_are_as_the_loaders_of_humanml3d_need_them(vectors):
    assert len(vectors) == 2 * CLIPS
    for features in vectors.values():
        assert features.dtype == np.float32 and features.shape[1:] == (263,)
        assert 40 <= len(features) < 200 and np.isfinite(features).all()
    assert len({len(features) for features in vectors.values()}) > 5


def test_captions_parse_and_their_times_lie_in_the_clip(made, vectors):
    ranges = 0
    for name, features in vectors.items():
        lines = lines_of(made, name)
        assert len(lines) >= motions.CAPTIONS
        for caption, tokens, begin, end in lines:
            assert re.fullmatch(r"[a-z ,]+\.?", caption)
            words = [token.split("/") for token in tokens.split(" ")]
            assert len(words) == len(caption.split()) and all(len(word) == 2 for word in words)
            begin, end = float(begin), float(end)
            if end:
                ranges += 1
                assert len(features[int(20 * begin) : int(20 * end)]) >= 40
            else:
                assert begin == 0
    assert ranges


def test_a_clip_named_m_is_the_mirror_image(made, vectors):
    for number in range(1, CLIPS + 1):
        own, image = (torch.from_numpy(vectors[f"{m}{number:06d}"]) for m in ("", "M"))
        torch.testing.assert_close(joints_of(image), mirrored(joints_of(own)), atol=1e-4, rtol=0)
        said = [line[0] for line in lines_of(made, f"{number:06d}")]
        mirror = [line[0] for line in lines_of(made, f"M{number:06d}")]
        assert [Line(caption).mirrored().caption for caption in said] == mirror


def test_a_clip_and_its_mirror_image_are_in_one_split(made):
    folder = made / "HumanML3D"
    names = {
        name: (folder / f"{name}.txt").read_text().split()
        for name in ("train", "val", "test", "train_val", "all")
    }
    parts = [set(names[part]) for part in ("train", "val", "test")]
    assert all(parts) and sum(map(len, parts)) == 2 * CLIPS == len(set.union(*parts))
    assert set(names["train_val"]) == parts[0] | parts[1] and set(names["all"]) == set.union(*parts)
    for part in parts:
        assert {name for name in part if "M" in name} == {f"M{n}" for n in part if "M" not in n}


def test_statistics_are_one_deviation_a_kind_of_feature(made, vectors):
    folder = made / "HumanML3D"
    train = (folder / "train.txt").read_text().split()
    frames = np.concatenate([vectors[name] for name in train]).astype(np.float64)
    mean, std = np.load(folder / "Mean.npy"), np.load(folder / "Std.npy")
    assert mean.dtype == std.dtype == np.float32 and mean.shape == std.shape == (263,)
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-5, atol=1e-6)
    own = frames.std(0)
    for begin, end in ((0, 1), (1, 3), (3, 4), (4, 67), (67, 193), (193, 259), (259, 263)):
        np.testing.assert_allclose(std[begin:end], own[begin:end].mean(), rtol=1e-5)
    assert (std > 0).all()
    ratio = std / np.load(made / "t2m_std.npy")
    np.testing.assert_allclose(ratio[[0, 1, 2, 3, 259, 260, 261, 262]], 25, rtol=1e-5)
    np.testing.assert_allclose(ratio[4:259], 1, rtol=1e-5)
    assert np.array_equal(np.load(made / "t2m_mean.npy"), mean)


def test_a_clip_is_a_function_of_the_seed_and_its_number(vectors):
    joints, lines = motions.clip(0, 7)
    assert np.array_equal(features_of(joints).float().numpy(), vectors["000007"])
    assert lines == motions.clip(0, 7)[1]
    assert motions.clip(1, 7)[0].shape != joints.shape or not torch.equal(
        motions.clip(1, 7)[0], joints
    )


def test_motions_that_are_there_are_not_overwritten(made, tmp_path):
    assert "exists already" in refused("experiments.motions", "--out", made)
    assert "--clips 4" in refused("experiments.motions", "--out", tmp_path / "few", "--clips", 4)
    assert not (tmp_path / "few").exists()
