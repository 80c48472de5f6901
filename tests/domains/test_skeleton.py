"""The 263 features of HumanML3D: what they say of joints, and pictures of them."""

import math

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from scipy.ndimage import gaussian_filter1d

from domains import skeleton
from domains.skeleton import BONES, DIRECTIONS, FEET, JOINTS, PARENTS, features_of, joints_of
from experiments.gaits import Act, moved, together


def motion(action="circle", seconds=5.0, **how):
    """Joints (T, 22, 3)."""
    return torch.from_numpy(moved(together([Act(action, seconds, **how)]), size=1.0))


def canonical(joints):
    """As `joints_of` gives it: facing z by the averaged heading that features are relative to."""
    joints = skeleton.canonical(joints)
    return skeleton.turned(joints, -skeleton.facing(joints, skeleton.SMOOTHING)[:1, None])


def still(frames):
    """Features of one who stands: root a metre high, every other joint at its place."""
    features = torch.zeros(frames, 263, dtype=torch.float64)
    features[:, 3] = 1.0
    features[:, 4:67] = torch.randn(63, generator=torch.Generator().manual_seed(0)).double()
    return features


def test_263_are_the_features_of_22_joints():
    assert tuple(skeleton.WIDTHS) == (1, 2, 1, 63, 126, 66, 4) and skeleton.WIDTH == 263
    assert [JOINTS[n] for n in FEET] == ["left ankle", "left foot", "right ankle", "right foot"]
    assert sorted(child for _, child in BONES) == list(range(1, 22))
    # Published: every joint of SMPL and the one that carries it.
    assert PARENTS == (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)


@pytest.mark.parametrize("action", ["circle", "turn", "run", "jump forward", "bow"])
def test_joints_come_back_from_their_features(action):
    joints = skeleton.turned(motion(action), torch.tensor(1.0)) + torch.tensor([3.0, 0.4, -2.0])
    features = features_of(joints)
    assert features.shape == (len(joints) - 1, 263)
    torch.testing.assert_close(joints_of(features), canonical(joints)[:-1], atol=1e-9, rtol=0)
    single = joints_of(features_of(joints.float()))
    torch.testing.assert_close(single.double(), canonical(joints)[:-1], atol=1e-5, rtol=0)


def test_a_person_may_turn_round_and_round():
    """The heading passes 180 degrees; HumanML3D's own script takes the turn back there."""
    joints = motion("circle", 20.0)
    turned = 2 * features_of(joints)[:, 0].sum()
    assert -turned > 2 * 2 * math.pi
    torch.testing.assert_close(joints_of(features_of(joints)), canonical(joints)[:-1])


def test_a_batch_is_many_motions():
    features = torch.stack([features_of(motion("walk")), features_of(motion("run"))])
    assert torch.equal(joints_of(features)[1], joints_of(features[1]))
    assert joints_of(features[None]).shape == (1, 2, 99, 22, 3)


def test_walking_straight_goes_as_far_as_speed_times_time():
    features = still(101)
    features[:, 2] = 0.06  # 1.2 m/s at 20 frames a second
    joints = joints_of(features)
    torch.testing.assert_close(joints[-1, 0], torch.tensor([0, 1.0, 1.2 * 5]).double())
    body = joints - skeleton.below(joints[:, :1])
    torch.testing.assert_close(body, body[:1].expand_as(body))


def test_a_negative_turn_is_to_the_left():
    """Half the angle, and a frame later; travel is as the next frame faces."""
    features = still(21)
    features[:, 0] = -math.pi / 2 / 20 / 2
    features[:, 2] = 0.05
    features[:, 4:7] = torch.tensor([0, 1.0, 1.0])  # a joint in front of the root
    joints = joints_of(features)
    ahead = joints[:, 1] - joints[:, 0]
    torch.testing.assert_close(ahead[0], torch.tensor([0, 0, 1.0]).double())
    torch.testing.assert_close(ahead[20], torch.tensor([1.0, 0, 0]).double())
    radius = 0.05 * 20 / (math.pi / 2)
    torch.testing.assert_close(
        joints[20, 0], torch.tensor([radius, 1.0, radius]).double(), atol=0.03, rtol=0
    )


def test_rotations_and_the_lengths_of_bones_give_the_joints():
    """Forward kinematics undo what the rotations were made by."""
    joints = skeleton.canonical(motion("kick"))
    heading = skeleton.facing(joints, skeleton.SMOOTHING)
    rotations = skeleton.split(features_of(joints)).rotations
    first, second = rotations.unflatten(-1, (21, 2, 3)).unbind(-2)
    local = torch.stack([first, second, torch.linalg.cross(first, second)], -1)
    assert (torch.linalg.det(local) - 1).abs().max() < 1e-9
    found = joints[:-1].clone()
    axes = torch.eye(3).double()
    start = torch.stack([skeleton.turned(axis, -heading[:-1]) for axis in axes], -1)
    for chain in skeleton.CHAINS:
        turn = start
        for parent, child in zip(chain[:-1], chain[1:], strict=True):
            turn = turn @ local[:, child - 1]
            length = (joints[:-1, child] - joints[:-1, parent]).norm(dim=-1, keepdim=True)
            found[:, child] = found[:, parent] + turn @ DIRECTIONS[child] * length
    torch.testing.assert_close(found, joints[:-1])


def test_a_bone_may_point_against_its_rest():
    axes = torch.stack([-skeleton.Y, skeleton.Z, skeleton.X])
    turns = skeleton.between(axes, -axes)
    torch.testing.assert_close((turns @ axes[..., None])[..., 0], -axes)
    assert torch.linalg.det(turns).sub(1).abs().max() < 1e-12


def test_the_heading_is_averaged_as_scipy_averages():
    curves = torch.randn(70, 2, generator=torch.Generator().manual_seed(1)).double()
    expected = gaussian_filter1d(curves.numpy(), 20, axis=0, mode="nearest")
    np.testing.assert_allclose(skeleton.smoothed(curves, 20).numpy(), expected, atol=1e-12)


def test_velocities_are_differences_of_positions():
    joints = canonical(motion("run"))
    parts = skeleton.split(features_of(joints))
    speeds = joints.diff(dim=0).norm(dim=-1)
    torch.testing.assert_close(parts.velocities.unflatten(-1, (22, 3)).norm(dim=-1), speeds)
    root = skeleton.below(joints.diff(dim=0))[:, 0].norm(dim=-1)
    torch.testing.assert_close(parts.travel.norm(dim=-1), root)


def test_a_foot_that_hardly_moves_has_contact():
    joints = motion("bow")[:3].clone()
    joints[1:] = joints[0]
    joints[1:, 10] += torch.tensor([0.05, 0, 0])  # 5 cm in a frame: more than 0.002 squared
    joints[1:, 8] += torch.tensor([0, 0, 0.04])  # 4 cm: less
    contacts = skeleton.split(features_of(joints)).contacts
    assert contacts.tolist() == [[1, 0, 1, 1], [1, 1, 1, 1]]


def test_walking_feet_take_turns_on_the_floor():
    contacts = skeleton.split(features_of(motion("walk", 8.0))).contacts[20:-20]
    left, right = contacts[:, 0].bool(), contacts[:, 2].bool()
    assert (left & ~right).any() and (right & ~left).any()
    assert (left | right).float().mean() > 0.9


def test_a_mirror_swaps_left_and_right():
    joints = motion("wave", side="left")
    image = skeleton.mirrored(joints)
    for name in ("wrist", "foot"):
        left, right = JOINTS.index(f"left {name}"), JOINTS.index(f"right {name}")
        expected = joints[:, left] * torch.tensor([-1, 1, 1])
        torch.testing.assert_close(image[:, right], expected)
    torch.testing.assert_close(skeleton.mirrored(image), joints)
    torch.testing.assert_close(
        joints_of(features_of(image)), skeleton.mirrored(joints_of(features_of(joints)))
    )
    one, other = features_of(motion("circle")), features_of(skeleton.mirrored(motion("circle")))
    torch.testing.assert_close(one[:, 0], -other[:, 0])
    assert torch.equal(one[:, -4:], other[:, [-2, -1, -4, -3]])


@pytest.fixture(scope="module")
def motions():
    return [joints_of(features_of(motion(*how))) for how in [("walk", 1.0), ("wave", 1.6)]]


def share_of(color, image):
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return (np.abs(pixels - ImageColor.getrgb(color)).sum(-1) < 12).mean()


def test_a_gif_has_the_frames_of_the_longest_motion(tmp_path, motions):
    skeleton.save_animation(tmp_path / "a.gif", motions, titles=["a person walks", "one waves"])
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == max(map(len, motions)) == 31
        seen = []
        for frame in range(film.n_frames):
            film.seek(frame)
            assert film.info["duration"] == 50
            seen.append(film.convert("RGB"))
    width, height = skeleton.TILE
    assert seen[0].size == (2 * width, height + skeleton.CAPTION + skeleton.MARGIN)
    for color in skeleton.COLORS.values():
        for left in (0, width):
            assert share_of(color, seen[10].crop((left, 0, left + width, height))) > 0.01
    walker = (0, 0, width, height)
    assert seen[3].crop(walker) != seen[9].crop(walker)
    # It has ended: it waits, in pale colors.
    assert seen[-1].crop(walker) == seen[-2].crop(walker)
    assert share_of(skeleton.COLORS["left"], seen[-1].crop(walker)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_captions_are_written_and_wrapped_within_their_tile(tmp_path, motions):
    title = "a person walks forward slowly and waves the left hand " * 4
    skeleton.save_animation(tmp_path / "a.gif", [motions[0]] * 2, titles=[title, ""])
    with Image.open(tmp_path / "a.gif") as film:
        (width, height), image = skeleton.TILE, film.convert("RGB")
    caption = (0, height, width, height + skeleton.CAPTION)
    assert share_of(skeleton.DARK, image.crop(caption)) > 0.02
    beside = (width, height, 2 * width, height + skeleton.CAPTION)
    assert image.crop(beside).getextrema() == ((255, 255),) * 3


def test_an_mp4_plays_at_the_same_speed(tmp_path, motions):
    skeleton.save_animation(tmp_path / "a.mp4", motions[:1])
    with av.open(str(tmp_path / "a.mp4")) as film:
        frames = list(film.decode(video=0))
    assert len(frames) == len(motions[0]) and frames[1].time == pytest.approx(1 / 20)
    assert share_of(skeleton.DARK, frames[5].to_image()) > 0.001


def test_a_sheet_of_poses_has_a_row_a_motion(tmp_path, motions):
    skeleton.save_poses(tmp_path / "a.png", motions, ["a person walks", "a person waves"])
    width, height = skeleton.POSE
    row = height + skeleton.MARGIN
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.height == 2 * row + skeleton.MARGIN
        for number in range(2):
            for column in range(skeleton.POSES):
                left = skeleton.CAPTION_WIDTH + column * width
                pose = sheet.crop((left, number * row, left + width, number * row + height))
                assert share_of(skeleton.COLORS["right"], pose) > 0.005


def test_a_motion_of_nonsense_is_drawn_all_the_same(tmp_path):
    """Models that have learned little make such."""
    wild = joints_of(1e4 * torch.randn(3, 263, generator=torch.Generator().manual_seed(0)))
    wild[1, 4] = torch.nan
    skeleton.save_animation(tmp_path / "a.gif", [wild])
    skeleton.save_poses(tmp_path / "a.png", [wild, wild[:1]])
    assert (tmp_path / "a.gif").exists() and (tmp_path / "a.png").exists()
