"""A human as HumanML3D has it: 22 joints, the 263 features of a frame, and stick figures that move.

y is up, lengths are metres; who faces z has x on the left.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.files import atomic_write

from .clips import write_mp4

FPS = 20
JOINTS = (
    "pelvis", "left hip", "right hip", "spine 1", "left knee", "right knee", "spine 2",
    "left ankle", "right ankle", "spine 3", "left foot", "right foot", "neck", "left collar",
    "right collar", "head", "left shoulder", "right shoulder", "left elbow", "right elbow",
    "left wrist", "right wrist",
)  # fmt: skip
# Right leg, left leg, trunk, right arm, left arm; arms begin at the chest.
CHAINS = (
    (0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21),
    (9, 13, 16, 18, 20),
)  # fmt: skip
BONES = tuple(bone for chain in CHAINS for bone in pairwise(chain))  # (parent, child)
# The bone before each in its chain, -1 where a chain begins.
BEFORE = [at - 1 if BONES[at][0] == BONES[at - 1][1] else -1 for at in range(len(BONES))]
PARENTS = (-1, *(parent for parent, _ in sorted(BONES, key=lambda bone: bone[1])))
SIDES = {"left": "right", "right": "left"}
MIRROR = [JOINTS.index(" ".join(SIDES.get(word, word) for word in name.split())) for name in JOINTS]
FEET = (7, 10, 8, 11)  # left ankle and foot, right ankle and foot
CONTACT = 0.002  # a foot that moves less than this, squared, in a frame has contact
SMOOTHING = 20  # frames; of the heading that the features are relative to

# Where a bone points when its rotation is none: a T with the arms hanging.
X, Y, Z = torch.eye(3, dtype=torch.float64)
DIRECTIONS = torch.stack([
    0 * X, X, -X, Y, -Y, -Y, Y, -Y, -Y, Y, Z, Z, Y, X, -X, Z, -Y, -Y, -Y, -Y, -Y, -Y
])  # fmt: skip

HEAD, NECK = JOINTS.index("head"), JOINTS.index("neck")
COLORS = {"left": "#1f77b4", "right": "#e0662a"}
DARK, PALE, PATH = "#404040", "#e2e2e2", "#b8a878"
FINER = 2  # pictures are drawn this much larger, then averaged, which smooths edges
TALL = 2.5  # metres from the top to the bottom of a picture
FOLLOWING = 5  # frames; the camera follows the root's path averaged over so many
TILE, POSE = (210, 220), (96, 190)  # pixels of a picture in an animation, on a sheet of poses
POSES = 10  # in a row of a sheet
CAPTION, CAPTION_WIDTH, MARGIN, FONT = 48, 150, 18, 12  # pixels
# What the camera sees to its right, towards it and downwards.
AROUND, ABOVE = math.radians(-50), math.radians(15)
RIGHT = np.array([math.cos(AROUND), 0, -math.sin(AROUND)])
NEAR = np.array([math.sin(AROUND), 0, math.cos(AROUND)])
TOWARDS = NEAR * math.cos(ABOVE) + np.array([0, math.sin(ABOVE), 0])
DOWN = NEAR * math.sin(ABOVE) - np.array([0, math.cos(ABOVE), 0])


class Features(NamedTuple):
    """The 263 numbers of a frame by what they are, in their order."""

    turn: Tensor  # (..., 1) half the change of heading until the next frame, + to the right
    travel: Tensor  # (..., 2) the root's x and z until the next frame, as that one faces
    height: Tensor  # (..., 1) the root's y
    positions: Tensor  # (..., 21 * 3) the other joints, seen from below the root, facing z
    rotations: Tensor  # (..., 21 * 6) two columns of the rotation of each bone in its parent's
    velocities: Tensor  # (..., 22 * 3) of all joints until the next frame, facing z
    contacts: Tensor  # (..., 4) of FEET, 0 or 1


WIDTHS = Features(1, 2, 1, 63, 126, 66, 4)
WIDTH = sum(WIDTHS)


def split(features: Tensor) -> Features:
    return Features(*features.split(WIDTHS, dim=-1))


def joints_of(features: Tensor) -> Tensor:
    """Denormalised features (..., T, 263) -> joints (..., T, 22, 3), from the positions in them.

    The motion starts at x = z = 0, facing z. Rotations, velocities and contacts are not looked at.
    """
    parts = split(features)
    heading = -2 * F.pad(parts.turn[..., :-1, 0], (1, 0)).cumsum(-1)
    x, z = F.pad(parts.travel[..., :-1, :], (0, 0, 1, 0)).unbind(-1)
    path = turned(torch.stack([x, torch.zeros_like(x), z], -1), heading).cumsum(-2)
    others = turned(parts.positions.unflatten(-1, (21, 3)), heading[..., None])
    root = path + F.pad(parts.height, (1, 1))
    return torch.cat([root[..., None, :], others + path[..., None, :]], dim=-2)


def features_of(joints: Tensor) -> Tensor:
    """Joints (T + 1, 22, 3) -> features (T, 263), as HumanML3D's own script makes them.

    Two things differ. Bodies keep their size: the script gives all of them the bones of one
    person. And a heading may pass from 180 to -180 degrees: the script's turn then has the wrong
    sign in that frame, so that what `joints_of` makes of it does not go where the person went.
    """
    kind, joints = joints.dtype, canonical(joints.double())
    heading = facing(joints, SMOOTHING)
    steps = joints.diff(dim=0)
    features = Features(
        turn=-wrapped(heading.diff())[:, None] / 2,
        travel=turned(steps[:, 0], -heading[1:])[:, [0, 2]],
        height=joints[:-1, 0, 1:2],
        positions=turned(joints - below(joints[:, :1]), -heading[:, None])[:-1, 1:].flatten(1),
        rotations=rotations_of(joints, heading)[:-1].flatten(1),
        velocities=turned(steps, -heading[:-1, None]).flatten(1),
        contacts=(steps[:, FEET].square().sum(-1) < CONTACT).double(),
    )
    return torch.cat(features, dim=-1).to(kind)


def canonical(joints: Tensor) -> Tensor:
    """Lowest joint at y = 0; in the first frame the root above the origin, the body facing z."""
    moved = joints - below(joints[:1, :1])
    moved[..., 1] -= joints[..., 1].min()
    return turned(moved, -facing(joints[:1])[:, None])


def mirrored(joints: Tensor) -> Tensor:
    """(..., 22, 3) as a mirror shows them: the left limbs are where the right ones were."""
    return joints[..., MIRROR, :] * joints.new_tensor([-1, 1, 1])


def facing(joints: Tensor, smoothing: float = 0) -> Tensor:
    """Heading (T,) of hips and shoulders (T, 22, 3) in radians: 0 is z, a quarter turn left is x.

    Args:
        smoothing: deviation in frames of the Gaussian that it is averaged with.
    """
    across = joints[:, 2] - joints[:, 1] + joints[:, 17] - joints[:, 16]
    across = F.normalize(across, dim=-1)
    forward = torch.stack([across[:, 2], -across[:, 0]], dim=-1)
    if smoothing:
        forward = smoothed(forward, smoothing)
    return torch.atan2(forward[:, 0], forward[:, 1])


def smoothed(curves: Tensor, deviation: float) -> Tensor:
    """(T, C) averaged with a Gaussian of four deviations to each side; the ends go on as they
    are."""
    radius = round(4 * deviation)
    places = torch.arange(-radius, radius + 1, dtype=curves.dtype, device=curves.device)
    weight = torch.softmax(-0.5 * (places / deviation).square(), dim=0)
    padded = F.pad(curves.T[:, None], (radius, radius), mode="replicate")
    return F.conv1d(padded, weight[None, None])[:, 0].T


def rotations_of(joints: Tensor, heading: Tensor) -> Tensor:
    """(T, 21, 6): how each bone is turned within the one before it in its chain.

    As in HumanML3D's script a chain begins in the rotation that undoes the heading, also those of
    the arms; and a bone has no twist, which positions do not tell.
    """
    parents, children = map(list, zip(*BONES, strict=True))
    directions = F.normalize(joints[:, children] - joints[:, parents], dim=-1)
    own = between(DIRECTIONS[children].to(directions), directions)
    axes = torch.eye(3, dtype=joints.dtype, device=joints.device)
    start = turned(axes, -heading[:, None]).transpose(-1, -2)
    before = torch.cat([own, start[:, None]], dim=1)[:, BEFORE]
    relative = before.transpose(-1, -2) @ own
    columns = relative[..., :2].transpose(-1, -2).flatten(-2)
    return columns[:, np.argsort(children)]


def between(axes: Tensor, directions: Tensor) -> Tensor:
    """The shortest rotations (..., 3, 3) that take unit vectors along x, y or z to others: a half
    turn around the first, then one around what lies midway."""
    midway = axes + directions
    opposite = midway.norm(dim=-1, keepdim=True) < 1e-6
    midway = torch.where(opposite, axes.roll(1, dims=-1), F.normalize(midway, dim=-1))
    return half_turn(midway) @ half_turn(axes)


def half_turn(axis: Tensor) -> Tensor:
    one = torch.eye(3, dtype=axis.dtype, device=axis.device)
    return 2 * axis[..., :, None] * axis[..., None, :] - one


def turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """(..., 3) around y by radians (...): z goes to x."""
    x, y, z = vectors.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([x * cos + z * sin, y.expand_as(x * cos), z * cos - x * sin], dim=-1)


def wrapped(angle: Tensor) -> Tensor:
    """The same angle from -pi to pi."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def below(joints: Tensor) -> Tensor:
    """Their places on the floor."""
    return joints * joints.new_tensor([1, 0, 1])


class Camera:
    """Sees a motion from its right front, a little from above, and follows the root.

    Args:
        joints: (T, 22, 3).
        size: width and height of its pictures in pixels.
    """

    def __init__(self, joints: Tensor, size: tuple[int, int]) -> None:
        joints = joints.detach().double().cpu().nan_to_num(0, 0, 0).clamp(-100, 100)
        self.size, self.scale = size, FINER * size[1] / TALL
        root = below(joints[:, 0])
        self.center = smoothed(root, FOLLOWING).numpy()
        self.joints, self.root = joints.numpy(), root.numpy()
        self.heading = facing(joints).numpy()

    def __len__(self) -> int:
        return len(self.joints)

    def picture(self, frame: int):
        """An image of the pose, on a floor of half metres with the root's path on it; of the last
        pose in pale colors if the motion has ended."""
        from PIL import Image, ImageDraw

        now = min(frame, len(self) - 1)
        image = Image.new("RGB", [FINER * side for side in self.size], "white")
        draw = ImageDraw.Draw(image)
        for line in floor(self.center[now]):
            draw.line(self.seen(line, now), fill=PALE, width=FINER)
        draw.line(self.seen(self.root[: now + 1], now), fill=PATH, width=2 * FINER)
        self.draw_body(draw, now)
        image = image.reduce(FINER)
        if frame > now:
            image = Image.blend(image, Image.new("RGB", self.size, "white"), 0.5)
        return image

    def draw_body(self, draw, now: int) -> None:
        """The bones from far to near, each with white edges that set it off from those behind."""
        pose, heading = self.joints[now], self.heading[now]
        up = pose[HEAD] - pose[NECK]
        skull = pose[HEAD] + 0.08 * up / max(np.linalg.norm(up), 1e-6)
        nose = skull + 0.16 * np.array([math.sin(heading), 0, math.cos(heading)])
        limbs = [(0.1, DARK, skull, skull), (0.02, DARK, skull, nose)]
        for one, other in BONES:
            color = COLORS.get(JOINTS[other].split()[0], DARK)
            limbs.append((0.03, color, pose[one], pose[other]))
        for radius, color, *ends in sorted(limbs, key=lambda limb: (limb[2] + limb[3]) @ TOWARDS):
            places, pixels = self.seen(np.stack(ends), now), radius * self.scale
            draw.line(places, fill="white", width=round(2 * pixels) + 2 * FINER)
            draw.line(places, fill=color, width=round(2 * pixels))
            for x, y in places:
                draw.ellipse((x - pixels, y - pixels, x + pixels, y + pixels), fill=color)

    def seen(self, points: np.ndarray, now: int) -> list[tuple[float, float]]:
        """(N, 3) -> where they are in the picture."""
        places = (points - self.center[now]) @ np.stack([RIGHT, DOWN], axis=1) * self.scale
        width, height = self.size
        return [tuple(place) for place in places + (FINER * width / 2, FINER * height * 0.86)]


def floor(center: np.ndarray) -> Iterator[np.ndarray]:
    """Lines (2, 3) half a metre apart, 1.5 m to each side of a place."""
    for along, across in ((0, 2), (2, 0)):
        for place in np.arange(np.ceil((center[across] - 1.5) * 2) / 2, center[across] + 1.5, 0.5):
            line = np.zeros((2, 3))
            line[:, across], line[:, along] = place, center[along] + np.array([-1.5, 1.5])
            yield line


def save_animation(
    path: str | Path, motions: Sequence[Tensor], *, titles: Sequence[str] | None = None,
    fps: float = FPS,
) -> None:  # fmt: skip
    """Stick figures that move, side by side: a GIF, or an MP4 if `path` ends in .mp4.

    Args:
        motions: joints (T, 22, 3); the lengths may differ: a shorter one waits in its last pose.
        titles: what is written below each.

    Raises:
        InputError: an MP4 without PyAV.
    """
    path = Path(path)
    sheets = frames_of(motions, titles)
    with atomic_write(path) as file:
        if path.suffix == ".mp4":
            write_mp4(file, map(np.asarray, sheets), fps)
        else:
            write_gif(file, sheets, fps)


def frames_of(motions: Sequence[Tensor], titles: Sequence[str] | None) -> Iterator:
    """The images of an animation."""
    columns = math.ceil(math.sqrt(len(motions)))
    rows = math.ceil(len(motions) / columns)
    width, height = TILE
    blank = sheet(columns * width, rows * (height + CAPTION) + MARGIN)
    for number, title in enumerate(titles or ()):
        place = (number % columns * width, number // columns * (height + CAPTION) + height)
        write(blank, place, title, width)
    cameras = [Camera(motion, TILE) for motion in motions]
    for frame in range(max(map(len, motions))):
        image = blank.copy()
        for number, camera in enumerate(cameras):
            place = (number % columns * width, number // columns * (height + CAPTION))
            image.paste(camera.picture(frame), place)
        yield image


def write_gif(file, images: Iterator, fps: float) -> None:
    colors = palette()
    first, *others = (image.quantize(palette=colors, dither=0) for image in images)
    first.save(
        file, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0
    )


def palette():
    """An image with the colors of the others and, for smooth edges, those on the way to white."""
    from PIL import Image, ImageColor

    names = (DARK, PALE, PATH, *COLORS.values())
    own = np.array([ImageColor.getrgb(name) for name in names])[:, None]
    share = np.linspace(0, 1, 6)[:, None]
    image = Image.new("P", (1, 1))
    image.putpalette((own * (1 - share) + 255 * share).round().astype(np.uint8).tobytes())
    return image


def save_poses(
    path: str | Path, motions: Sequence[Tensor], titles: Sequence[str] | None = None
) -> None:
    """A PNG sheet: a motion a row, and in it POSES poses from its first to its last frame, each
    where it is on the root's path; the seconds are below them."""
    width, height = POSE
    row = height + MARGIN
    image = sheet(CAPTION_WIDTH + POSES * width, len(motions) * row + MARGIN)
    for number, motion in enumerate(motions):
        top = number * row
        write(image, (0, top), titles[number] if titles else "", CAPTION_WIDTH, lines=8)
        camera = Camera(motion, POSE)
        for column, frame in enumerate(np.linspace(0, len(motion) - 1, POSES).round().astype(int)):
            left = CAPTION_WIDTH + column * width
            image.paste(camera.picture(frame), (left, top))
            write(image, (left, top + height), f"{frame / FPS:.1f} s", width)
    with atomic_write(path) as file:
        image.save(file, format="PNG")


def sheet(width: int, height: int):
    """A white image, of even size as videos need it, that says at its bottom who is left."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width + width % 2, height + height % 2), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT)
    for left, side in ((6, "left"), (46, "right")):
        draw.text((left, height - MARGIN), side, fill=COLORS[side], font=font)
    return image


def write(image, place: tuple[int, int], text: str, width: int, lines: int = 3) -> None:
    """Text below `place`, wrapped at `width`; what needs more lines is cut off."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT)
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if font.getlength(longer) <= width - 12:
            rows[-1] = longer
        else:
            rows.append(word)
    if len(rows) > lines:
        rows[lines - 1] += " ..."
    x, y = place
    draw.multiline_text((x + 6, y), "\n".join(rows[:lines]), fill=DARK, font=font, spacing=2)
