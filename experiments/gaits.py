"""A body that walks, jumps and waves: joint angles by formulas, joints by forward kinematics."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from domains.skeleton import FEET, FPS, JOINTS, PARENTS, SIDES, smoothed

# What moves -> how far in each frame: degrees; "lift" in metres, "forward" in metres a second.
Channels = dict[str, np.ndarray]

# From a joint's parent to the joint, in metres, of one who stands with hanging arms; the left side.
REST = {
    "hip": (0.06, -0.09, 0.0), "knee": (0.03, -0.385, 0.0), "ankle": (-0.01, -0.42, -0.02),
    "foot": (0.02, -0.06, 0.13), "spine 1": (0.0, 0.115, -0.02), "spine 2": (0.0, 0.135, 0.01),
    "spine 3": (0.0, 0.055, 0.01), "neck": (0.0, 0.21, -0.03), "head": (0.0, 0.09, 0.05),
    "collar": (0.075, 0.12, -0.02), "shoulder": (0.105, 0.03, -0.01),
    "elbow": (0.03, -0.255, -0.01), "wrist": (0.02, -0.25, 0.01),
}  # fmt: skip
# Part -> the channels that turn it, the outermost first: (channel, axis, share of its angle).
# Positive is forward (flex, bend), outwards (abduct), inwards (cross), to the left (lean, twist).
TURNS = {
    "pelvis": (("bend", "x", 0.35),),
    "spine 1": (("bend", "x", 0.25), ("lean", "z", -0.4), ("twist", "y", 0.3)),
    "spine 2": (("bend", "x", 0.25), ("lean", "z", -0.4), ("twist", "y", 0.3)),
    "spine 3": (("bend", "x", 0.15), ("lean", "z", -0.2), ("twist", "y", 0.4)),
    "neck": (("nod", "x", 0.5), ("twist", "y", -0.4)),
    "head": (("nod", "x", 0.5), ("twist", "y", -0.4)),
    "hip": (("bend", "x", -0.35), ("hip abduct", "z", 1.0), ("hip flex", "x", -1.0)),
    "knee": (("knee", "x", 1.0),),
    "ankle": (("ankle", "x", -1.0),),
    "collar": (("arm abduct", "z", 0.2), ("arm flex", "x", -0.1)),
    "shoulder": (
        ("arm cross", "y", -1.0), ("arm abduct", "z", 0.8), ("arm flex", "x", -0.9),
        ("arm twist", "y", 1.0),
    ),
    "elbow": (("elbow", "x", -1.0),),
}  # fmt: skip
TRUNK = ("bend", "lean", "twist", "nod")
LIMBS = ("hip flex", "hip abduct", "knee", "ankle", "arm flex", "arm abduct", "arm cross",
         "arm twist", "elbow")  # fmt: skip
HEEL = 0.06  # metres from the ankle down to the heel
GRIP = 0.01  # metres; a foot bears weight while it is about so close to the lowest one
GRAVITY = 9.81

# Seconds of one repetition at pace 1, of what has a count.
PERIODS = {"squat": 1.5, "jump": 1.5, "jump forward": 1.5, "bow": 1.6, "pick up": 1.7, "kick": 1.4,
           "punch": 0.9}  # fmt: skip


@dataclass(frozen=True)
class Act:
    """Something that somebody does."""

    action: str  # of ACTIONS
    seconds: float
    side: str = "left"
    pace: float = 1.0  # faster above 1
    count: int = 1  # repetitions
    size: float = 1.0  # of the movement

    @property
    def other(self) -> str:
        return SIDES[self.side]

    @property
    def sign(self) -> int:
        return 1 if self.side == "left" else -1

    @property
    def time(self) -> np.ndarray:
        return np.arange(round(self.seconds * FPS)) / FPS

    def window(self, start: float = 0.1, ramp: float = 0.45) -> np.ndarray:
        """0 at the beginning and the end, 1 between."""
        return rise((self.time - start) / ramp) * rise((self.seconds - start - self.time) / ramp)

    def cycles(self, rate: float) -> np.ndarray:
        """How many have passed at so many a second."""
        return self.time * rate * self.pace

    def repetition(self) -> np.ndarray:
        """How far each of `count` repetitions is, from 0 to 1; 0 before and after."""
        period = PERIODS[self.action]
        passed = self.time - (self.seconds - self.count * period / self.pace) / 2
        cycle = passed * self.pace / period
        return np.where((cycle > 0) & (cycle < self.count), cycle % 1, 0.0)


def rise(x: np.ndarray) -> np.ndarray:
    """From 0 at 0 to 1 at 1, smoothly."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def bump(x: np.ndarray, place: float, width: float) -> np.ndarray:
    return np.exp(-(((x - place) / width) ** 2))


def hump(cycle: np.ndarray, place: float, width: float) -> np.ndarray:
    """A bump in every cycle."""
    return bump((cycle - place + 0.5) % 1, 0.5, width)


def swing(cycle: np.ndarray) -> np.ndarray:
    return np.cos(2 * np.pi * cycle)


def there_and_back(x: np.ndarray) -> np.ndarray:
    """From 0 to 1 and back while x goes from 0 to 1."""
    return (1 - swing(x)) / 2


def times(window: np.ndarray, channels: Channels) -> Channels:
    return {name: window * channel for name, channel in channels.items()}


def both(**channels: np.ndarray) -> Channels:
    """The same for the left and the right limb; `_` in a name is a blank."""
    return {
        f"{side} {name.replace('_', ' ')}": channel
        for side in SIDES
        for name, channel in channels.items()
    }


def stride(act: Act, cycle: np.ndarray) -> Channels:
    """Walking; backwards if the cycles run backwards. A leg's cycle begins as its heel strikes."""
    reach = 21 * act.size
    channels = {"bend": 4 + 0 * cycle, "twist": 5 * act.size * swing(cycle)}
    for side, at in (("left", cycle), ("right", cycle + 0.5)):
        channels |= {
            f"{side} hip flex": 3 + reach * swing(at) + 5 * hump(at, 0.85, 0.1),
            f"{side} knee": 5 + 10 * hump(at, 0.13, 0.08) + 2.3 * reach * hump(at, 0.73, 0.12),
            f"{side} ankle": 7 * hump(at, 0.42, 0.12) - 17 * hump(at, 0.62, 0.08),
            f"{side} arm flex": -act.size * 20 * swing(at),
            f"{side} arm abduct": 5 + 0 * cycle,
            f"{side} elbow": 18 - 8 * swing(at),
        }
    return channels


def walk(act: Act) -> Channels:
    return times(act.window(), stride(act, act.cycles(0.95)))


def walk_back(act: Act) -> Channels:
    return times(act.window(), stride(act, -act.cycles(0.8)))


def circle(act: Act) -> Channels:
    turning = act.sign * 55 * act.pace * act.window()
    return walk(act) | {
        "heading": np.cumsum(turning) / FPS, "lean": act.sign * 4 * act.window()
    }  # fmt: skip


def run(act: Act) -> Channels:
    cycle = act.cycles(1.35)
    reach = 31 * act.size
    channels = {"bend": 14 + 0 * cycle, "twist": 9 * swing(cycle)}
    channels["lift"] = 0.05 * act.size * np.maximum(0, swing(2 * (cycle - 0.43)))
    for side, at in (("left", cycle), ("right", cycle + 0.5)):
        channels |= {
            f"{side} hip flex": 12 + reach * swing(at),
            f"{side} knee": 16 + 18 * hump(at, 0.15, 0.1) + 78 * hump(at, 0.7, 0.15),
            f"{side} ankle": 12 * hump(at, 0.2, 0.12) - 22 * hump(at, 0.48, 0.1),
            f"{side} arm flex": 5 - 38 * swing(at),
            f"{side} arm abduct": 12 + 0 * cycle,
            f"{side} elbow": 85 - 15 * swing(at),
        }
    return times(act.window(), channels)


def march(act: Act) -> Channels:
    cycle = act.cycles(0.85)
    channels = {}
    for side, at in (("left", cycle), ("right", cycle + 0.5)):
        up = hump(at, 0.25, 0.14) * act.size
        channels |= {
            f"{side} hip flex": 72 * up, f"{side} knee": 82 * up, f"{side} ankle": -8 * up,
            f"{side} arm flex": 8 - 28 * up, f"{side} elbow": 40 + 0 * up,
        }  # fmt: skip
    return times(act.window(), channels)


def lifted(side: str, up: np.ndarray) -> Channels:
    """A foot some centimetres above the floor and parallel to it."""
    return {f"{side} hip flex": 35 * up, f"{side} knee": 45 * up, f"{side} ankle": 10 * up}


def sidestep(act: Act) -> Channels:
    cycle = act.cycles(0.75)
    spread = 13 * act.size * there_and_back(cycle)
    channels = {"bend": 5 + 0 * cycle} | both(hip_abduct=spread, arm_abduct=8 + spread)
    for side, place in ((act.side, 0.25), (act.other, 0.75)):
        up = hump(cycle, place, 0.13)
        channels |= lifted(side, up)
    return times(act.window(), channels)


def turn(act: Act) -> Channels:
    """Small steps on the spot."""
    window = act.window(ramp=0.3)
    cycle = act.cycles(1.1)
    channels = {"twist": act.sign * 8 + 0 * cycle}
    for side, at in (("left", cycle), ("right", cycle + 0.5)):
        up = hump(at, 0.25, 0.14)
        channels |= lifted(side, up)
    channels = times(window, channels)
    passed = np.cumsum(window) / window.sum()
    return channels | {"heading": act.sign * 180 * rise(passed)}


def quarter_turn(act: Act) -> Channels:
    return turn(act) | {"heading": turn(act)["heading"] / 2}


def crouch(depth: np.ndarray) -> Channels:
    """Hips down, soles flat on the floor; 1 is a deep one."""
    return {"bend": 38 * depth} | both(hip_flex=88 * depth, knee=108 * depth, ankle=20 * depth)


def squat(act: Act) -> Channels:
    depth = there_and_back(act.repetition()) * min(act.size, 1.1)
    return crouch(depth) | both(arm_flex=112 * depth, arm_abduct=4 * depth)


def leap(act: Act) -> tuple[Channels, np.ndarray]:
    """Upwards; also whether the feet are in the air."""
    seconds = act.repetition() * PERIODS[act.action] / act.pace
    height = 0.25 * act.size
    flight = np.sqrt(8 * height / GRAVITY)
    since = seconds - 0.5
    airborne = (since > 0) & (since < flight)
    down = bump(seconds, 0.3, 0.13) + 0.6 * bump(seconds, 0.62 + flight, 0.13)
    channels = crouch(0.65 * down)
    air = np.where(airborne, there_and_back(since / flight), 0)
    for name, degrees in (("knee", 22), ("hip flex", 12), ("ankle", -28)):
        for side in SIDES:
            channels[f"{side} {name}"] = channels[f"{side} {name}"] + degrees * air
    reach = 120 * bump(seconds, 0.55 + flight / 2, 0.25) - 35 * bump(seconds, 0.28, 0.12)
    channels |= both(arm_flex=reach, elbow=20 * down)
    channels["lift"] = np.where(airborne, GRAVITY / 2 * since * (flight - since), 0)
    return channels, airborne


def jump(act: Act) -> Channels:
    return leap(act)[0]


def jump_forward(act: Act) -> Channels:
    channels, airborne = leap(act)
    return channels | {
        "forward": 1.5 * act.size * airborne,
        "bend": channels["bend"] + 6 * airborne,
    }


def jumping_jacks(act: Act) -> Channels:
    cycle = act.cycles(1.0)
    window = act.window()
    out = there_and_back(cycle)
    channels = both(
        hip_abduct=17 * out, arm_abduct=8 + 140 * out, knee=10 + 12 * swing(2 * cycle),
        hip_flex=5 + 6 * swing(2 * cycle), ankle=5 + 6 * swing(2 * cycle),
    )  # fmt: skip
    channels["lift"] = 0.07 * act.size * np.abs(np.sin(2 * np.pi * cycle))
    return times(window, channels)


def bow(act: Act) -> Channels:
    down = rise(act.repetition() / 0.35) * rise((1 - act.repetition()) / 0.35)
    return times(down, {"bend": 68 * act.size + 0 * down, "nod": 18 + 0 * down}) | both(
        arm_flex=62 * down, ankle=-3 * down
    )


def sit(act: Act) -> Channels:
    """Onto a chair that nobody sees, to stay there."""
    begin = 0.3
    down = rise((act.time - begin) * act.pace / 1.3)
    return seated(down)


def sit_and_stand(act: Act) -> Channels:
    return seated(act.window(start=0.2, ramp=min(1.2 / act.pace, act.seconds / 2.5)))


def seated(down: np.ndarray) -> Channels:
    moving = 4 * down * (1 - down)
    return {"bend": 6 * down + 38 * moving} | both(
        hip_flex=84 * down, knee=88 * down, ankle=4 * down,
        arm_flex=22 * down + 22 * moving, elbow=48 * down,
    )  # fmt: skip


def pick_up(act: Act) -> Channels:
    passed = act.repetition()
    down = rise(passed / 0.4) * rise((1 - passed) / 0.4)
    channels = crouch(0.75 * down)
    channels["bend"] = 72 * down
    return channels | {
        f"{act.side} arm flex": 95 * down + 25 * bump(passed, 0.88, 0.1),
        f"{act.other} arm flex": 50 * down,
        f"{act.side} elbow": 60 * bump(passed, 0.85, 0.12), f"{act.other} elbow": 30 * down,
    }  # fmt: skip


def kick(act: Act) -> Channels:
    passed = act.repetition()
    back, front = bump(passed, 0.28, 0.1), bump(passed, 0.52, 0.11) * act.size
    off = bump(passed, 0.42, 0.2)
    return {
        f"{act.side} hip flex": 72 * front - 22 * back + 6 * off,
        f"{act.side} knee": 75 * back + 14 * off + 8 * front,
        f"{act.side} ankle": -12 * front,
        f"{act.other} knee": 10 * off, f"{act.other} hip flex": 5 * off,
        f"{act.other} ankle": 5 * off,
        f"{act.other} arm flex": 40 * front, f"{act.side} arm flex": -25 * front,
        "left arm abduct": 28 * off, "right arm abduct": 28 * off,
        "bend": 8 * back - 10 * front, "lean": -act.sign * 6 * off,
    }  # fmt: skip


def wave(act: Act) -> Channels:
    return times(act.window(), {
        f"{act.side} arm abduct": 75 + 0 * act.time, f"{act.side} arm twist": 85 + 0 * act.time,
        f"{act.side} arm flex": 12 + 0 * act.time,
        f"{act.side} elbow": 85 + 28 * act.size * np.sin(2 * np.pi * act.cycles(1.4)),
    })  # fmt: skip


def raise_arms(act: Act) -> Channels:
    up = act.window(start=0.25, ramp=0.8 / act.pace)
    return both(arm_abduct=158 * up, elbow=12 * up) | {"bend": -4 * up}


def raise_arm(act: Act) -> Channels:
    up = act.window(start=0.25, ramp=0.8 / act.pace)
    return {f"{act.side} arm flex": 160 * up, f"{act.side} elbow": 10 * up}


def clap(act: Act) -> Channels:
    open_ = there_and_back(act.cycles(1.8)) * act.size
    return times(act.window(), both(arm_flex=48 + 0 * open_, elbow=62 + 0 * open_,
                                    arm_cross=24 - 30 * open_))  # fmt: skip


def punch(act: Act) -> Channels:
    passed = act.repetition()
    guard, hit = act.window(start=0.05, ramp=0.4), bump(passed, 0.5, 0.15)
    return both(arm_flex=32 * guard, elbow=112 * guard, arm_cross=10 * guard) | {
        f"{act.side} arm flex": 32 * guard + 52 * hit, f"{act.side} elbow": 112 * guard - 102 * hit,
        "twist": -act.sign * 26 * hit,
    }  # fmt: skip


def blank(frames: int) -> Channels:
    names = (
        *TRUNK,
        "heading",
        "lift",
        "forward",
        *(f"{s} {limb}" for s in SIDES for limb in LIMBS),
    )
    return {name: np.zeros(frames) for name in names}


def together(acts: list[Act]) -> Channels:
    """Acts of equal length at the same time; the later ones have their way."""
    channels = blank(len(acts[0].time))
    for act in acts:
        channels |= PROGRAMS[act.action](act)
    return channels


def one_after_another(parts: list[Channels]) -> Channels:
    """Each begins in the heading in which the one before ended."""
    channels = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = np.cumsum([0, *(part["heading"][-1] for part in parts)])
    turns = [part["heading"] + end for part, end in zip(parts, ends[:-1], strict=True)]
    return channels | {"heading": np.concatenate(turns)}


def shaken(channels: Channels, draw: np.random.Generator) -> Channels:
    """Nobody moves like a formula: slow deviations of a degree or two in every angle."""
    result = dict(channels)
    for name, channel in channels.items():
        if name not in ("heading", "lift", "forward"):
            slow = blurred(draw.normal(size=(len(channel), 1)), 8)[:, 0]
            result[name] = channel + (4 if "hip" in name or "knee" in name else 9) * slow
    return result


def blurred(curves: np.ndarray, deviation: float) -> np.ndarray:
    return smoothed(torch.from_numpy(curves), deviation).numpy()


def rotation(axis: str, degrees: np.ndarray) -> np.ndarray:
    """(T,) -> (T, 3, 3)."""
    one, other = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.tile(np.eye(3), (len(degrees), 1, 1))
    matrix[:, one, one], matrix[:, one, other] = cos, -sin
    matrix[:, other, one], matrix[:, other, other] = sin, cos
    return matrix


def posed(channels: Channels, size: float) -> np.ndarray:
    """Joints (T, 22, 3) of a body that faces z, its root at the origin."""
    frames = len(channels["bend"])
    places = np.zeros((frames, len(JOINTS), 3))
    turns = np.tile(np.eye(3), (len(JOINTS), frames, 1, 1))
    for number, (name, parent) in enumerate(zip(JOINTS, PARENTS, strict=True)):
        first, _, rest = name.partition(" ")
        side, part = (first, rest) if first in SIDES else ("", name)
        sign = -1 if side == "right" else 1
        if parent >= 0:
            offset = size * np.array(REST[part]) * (sign, 1, 1)
            places[:, number] = places[:, parent] + turns[parent] @ offset
            turns[number] = turns[parent]
        for channel, axis, share in TURNS.get(part, ()):
            if channel not in TRUNK:
                channel, share = f"{side} {channel}", share if axis == "x" else sign * share
            turns[number] = turns[number] @ rotation(axis, share * channels[channel])
    return places


def moved(channels: Channels, size: float) -> np.ndarray:
    """Joints (T, 22, 3) in the world: a foot that bears weight stays where it is, and the body
    moves over it.

    Args:
        size: of the body, 1 is 1.7 metres.
    """
    joints = np.einsum("tij,tnj->tni", rotation("y", channels["heading"]), posed(channels, size))
    ankles, toes = joints[:, FEET[::2]], joints[:, FEET[1::2]]
    soles = np.concatenate([toes, ankles - (0, size * HEEL, 0)], axis=1)
    weight = np.exp((soles[..., 1].min(1, keepdims=True) - soles[..., 1]) / GRIP)
    weight /= weight.sum(1, keepdims=True)
    ahead = np.radians(channels["heading"][1:])
    drift = np.stack([np.sin(ahead), 0 * ahead, np.cos(ahead)], 1) * channels["forward"][1:, None]
    borne = ((weight[1:] + weight[:-1])[..., None] / 2 * np.diff(soles, axis=0)).sum(1)
    root = np.zeros((len(joints), 3))
    root[1:] = np.cumsum(blurred(drift / FPS - borne, 1), axis=0)
    root[:, 1] = channels["lift"] - blurred((weight * soles[..., 1]).sum(1, keepdims=True), 1)[:, 0]
    return joints + root[:, None]


PROGRAMS: dict[str, Callable[[Act], Channels]] = {
    "walk": walk, "walk back": walk_back, "circle": circle, "run": run, "march": march,
    "sidestep": sidestep, "turn": turn, "quarter turn": quarter_turn, "squat": squat, "jump": jump,
    "jump forward": jump_forward, "jumping jacks": jumping_jacks, "bow": bow, "sit": sit,
    "sit and stand": sit_and_stand, "pick up": pick_up, "kick": kick, "wave": wave,
    "raise arms": raise_arms, "raise arm": raise_arm, "clap": clap, "punch": punch,
}  # fmt: skip
