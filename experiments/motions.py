"""A small motion data set in HumanML3D's layout, of figures that a script moves: no download.

python -m experiments.motions --out data/motions
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from domains.humanml3d import LOUD, LOUDER
from domains.skeleton import SIDES, WIDTH, WIDTHS, features_of, mirrored
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.random import seed_of

from .gaits import PERIODS, Act, moved, one_after_another, shaken, together

SHORTEST, LONGEST = 2.1, 9.8  # seconds; the loaders keep 40 to 199 frames
SHARES = {"train": 0.8, "val": 0.05, "test": 0.15}  # HumanML3D's
CAPTIONS = 3  # of a clip


@dataclass(frozen=True)
class Flags:
    """Write captioned motions of a figure that walks, jumps, waves ..., and their mirror images."""

    out: Path = Path("data/motions")  # the folder to write
    clips: int = 600  # the mirror images come besides
    seed: int = 0  # of the motions and their captions


class Action(NamedTuple):
    """How an action is called, and when it can be asked for."""

    phrases: tuple[str, ...]
    kind: str = "gait"  # arms can move besides; "arms": those; "body": all; "last": nothing follows
    longest: float = LONGEST


ACTIONS = {
    "walk": Action(("walks forward{pace}", "is walking straight ahead{pace}",
                    "strolls forward{pace}")),
    "walk back": Action(("walks backward{pace}", "goes back{pace}",
                         "is walking backwards{pace}")),
    "circle": Action(("walks in a circle to the {side}{pace}", "walks {round}{pace} in a circle",
                      "is walking around{pace} in a {round} circle")),
    "run": Action(("runs forward{pace}", "is jogging straight ahead{pace}", "runs{pace}")),
    "march": Action(("marches in place{pace}", "lifts {their} knees high{pace}",
                     "is marching on the spot{pace}")),
    "sidestep": Action(("steps to the {side}{pace}", "sidesteps {side}{pace}",
                        "moves sideways to the {side}{pace}")),
    "turn": Action(("turns around to the {side}{pace}", "turns around{pace}",
                    "spins {round}{pace}"), longest=4.5),
    "quarter turn": Action(("turns {side}{pace}", "makes a quarter turn to the {side}{pace}"),
                           longest=3.0),
    "jumping jacks": Action(("does jumping jacks{pace}", "is doing jumping jacks{pace}"), "body"),
    "squat": Action(("squats{count}{pace}", "squats down{count}{pace}"), "body"),
    "jump": Action(("jumps{count}{pace}", "jumps up{count}"), "body"),
    "jump forward": Action(("jumps forward{count}{pace}", "leaps forward{count}"), "body"),
    "bow": Action(("bows{count}{pace}", "takes a bow{count}", "bends forward{count}{pace}"),
                  "body"),
    "pick up": Action(("picks something up with {their} {side} hand{count}",
                       "bends down{pace} and picks something up{count}"), "body"),
    "kick": Action(("kicks with {their} {side} leg{count}{pace}",
                    "kicks{count} with the {side} foot",
                    "kicks {their} {side} leg{count}{pace}"), "body"),
    "sit and stand": Action(("sits down{pace} and stands up again",
                             "takes a seat{pace} and gets up again"), "body", 6.0),
    "sit": Action(("sits down{pace}", "takes a seat{pace}", "sits down on a chair{pace}"), "last",
                  5.0),
    "wave": Action(("waves {their} {side} hand{pace}", "waves with the {side} arm{pace}",
                    "is waving {their} {side} hand{pace}"), "arms"),
    "raise arms": Action(("raises both arms{pace}", "lifts {their} arms above {their} head{pace}",
                          "holds both hands up"), "arms", 6.0),
    "raise arm": Action(("raises {their} {side} arm{pace}", "lifts the {side} hand up{pace}"),
                        "arms", 6.0),
    "clap": Action(("claps {their} hands{pace}", "is clapping{pace}", "claps{pace}"), "arms"),
    "punch": Action(("punches with {their} {side} hand{count}", "throws a {side} punch{count}"),
                    "arms"),
}  # fmt: skip
PACES = {0.75: " slowly", 1.0: "", 1.25: " quickly"}
COUNTS = {1: "", 2: " twice", 3: " three times"}
PEOPLE = {"a person": "their", "the person": "their", "someone": "their", "a man": "his",
          "the man": "his", "a woman": "her"}  # fmt: skip
AT_ONCE = ("{} and {}", "{} and also {}", "{} and {} at the same time")
THEN = ("{} and then {}", "{}, then {}", "{} and afterwards {}")
ROUND = {"left": "counterclockwise", "right": "clockwise"}
OPPOSITE = SIDES | {"clockwise": "counterclockwise", "counterclockwise": "clockwise"}

# Tag -> words, with a colon before the word that stands for it in the tokens. As spaCy has it.
TAGS = {
    "VERB": "walks:walk walking:walk strolls:stroll goes:go runs:run jogging:jog marches:march "
            "marching:march lifts:lift steps:step sidesteps:sidestep moves:move turns:turn "
            "spins:spin makes:make does:do doing:do jumping:jump squats:squat jumps:jump "
            "leaps:leap bows:bow takes:take bends:bend picks:pick kicks:kick sits:sit "
            "stands:stand gets:get waves:wave waving:wave raises:raise holds:hold claps:clap "
            "clapping:clap punches:punch throws:throw",
    "NOUN": "person man woman circle place knees:knee spot turn jacks:jack bow hand hands:hand leg "
            "foot seat chair arm arms:arm head punch time times:time",
    "ADV": "forward ahead backward back backwards around sideways counterclockwise clockwise again "
           "then afterwards also slowly quickly twice",
    "ADJ": "left right straight high quarter same",
    "ADP": "in to on with above at up down",
    "DET": "a the their his her both",
    "PRON": "someone something",
    "AUX": "is",
    "CCONJ": "and",
    "NUM": "three",
}  # fmt: skip
TOKENS = {
    word.split(":")[0]: f"{word.split(':')[-1]}/{tag}"
    for tag, words in TAGS.items()
    for word in words.split()
}


class Line(NamedTuple):
    """What is said of a clip, or of a part of it."""

    caption: str
    begin: float = 0.0  # seconds; 0 and 0 are the whole clip
    end: float = 0.0

    def text(self) -> str:
        words = self.caption.replace(",", "").replace(".", "").split()
        tokens = " ".join(TOKENS[word] for word in words)
        return f"{self.caption}#{tokens}#{self.begin:.1f}#{self.end:.1f}\n"

    def mirrored(self) -> "Line":
        swapped = re.sub(r"\w+", lambda word: OPPOSITE.get(word[0], word[0]), self.caption)
        return self._replace(caption=swapped)


def planned(draw: np.random.Generator) -> list[list[Act]]:
    """One part or two, one after the other; in each one act, or a gait and what the arms do."""
    parts = 2 if draw.random() < 0.3 else 1
    plan = []
    for number in range(parts):
        kinds = {"gait", "arms", "body"} | ({"last"} if number == parts - 1 else set())
        act = drawn(draw, kinds, LONGEST / parts)
        plan.append([act])
        if ACTIONS[act.action].kind == "gait" and draw.random() < 0.35:
            plan[-1].append(drawn(draw, {"arms"}, act.seconds, act.seconds))
    return plan


def drawn(
    draw: np.random.Generator, kinds: set[str], longest: float, seconds: float | None = None
) -> Act:
    """An act, of so many seconds if they are given."""
    names = [name for name, action in ACTIONS.items() if action.kind in kinds]
    name = names[draw.integers(len(names))]
    pace = list(PACES)[draw.integers(len(PACES))]
    side = list(SIDES)[draw.integers(2)]
    count = 1
    if name in PERIODS:
        period = PERIODS[name] / pace
        count = int(draw.integers(1, 1 + min(len(COUNTS), int((longest - 0.3) / period))))
        own = count * period + draw.uniform(0.3, 1.2)
    else:
        own = draw.uniform(SHORTEST, min(longest, ACTIONS[name].longest))
    own = round(min(max(own, SHORTEST), longest), 1)
    size, tempo = draw.uniform(0.85, 1.15), pace * draw.uniform(0.93, 1.07)
    return Act(name, seconds or own, side, tempo, count, size)


def caption(plan: list[list[Act]], draw: np.random.Generator) -> str:
    person = list(PEOPLE)[draw.integers(len(PEOPLE))]
    said = [joined(AT_ONCE, [phrase(act, person, draw) for act in acts], draw) for acts in plan]
    stop = "." if draw.random() < 0.5 else ""
    return f"{person} {joined(THEN, said, draw)}{stop}"


def phrase(act: Act, person: str, draw: np.random.Generator) -> str:
    phrases = ACTIONS[act.action].phrases
    nearest = min(PACES, key=lambda pace: abs(pace - act.pace))
    return phrases[draw.integers(len(phrases))].format(
        side=act.side, round=ROUND[act.side], their=PEOPLE[person], pace=PACES[nearest],
        count=COUNTS[act.count],
    )  # fmt: skip


def joined(templates: Sequence[str], phrases: list[str], draw: np.random.Generator) -> str:
    template = templates[draw.integers(len(templates))]
    return template.format(*phrases) if len(phrases) == 2 else phrases[0]


def clip(seed: int, number: int) -> tuple[Tensor, list[Line]]:
    """Joints (T + 1, 22, 3), float64, and what is said of them; a function of its arguments."""
    draw = np.random.default_rng(seed_of("motion", seed, number))
    plan = planned(draw)
    channels = shaken(one_after_another([together(acts) for acts in plan]), draw)
    joints = torch.from_numpy(moved(channels, size=draw.uniform(0.93, 1.07)))
    lines = [Line(caption(plan, draw)) for _ in range(CAPTIONS)]
    if len(plan) == 2 and draw.random() < 0.5:
        ends = np.cumsum([0, *(acts[0].seconds for acts in plan)])
        for acts, begin, end in zip(plan, ends[:-1], ends[1:], strict=True):
            lines.append(Line(caption([acts], draw), begin, end))
    return joints, lines


def splits(clips: int, seed: int) -> dict[str, list[str]]:
    """Names by split; a clip and its mirror image are in the same one."""
    order = np.random.default_rng(seed_of("splits", seed)).permutation(clips) + 1
    ends = np.round(np.cumsum(list(SHARES.values())) * clips).astype(int)[:-1]
    found = {
        name: [f"{mirror}{number:06d}" for number in sorted(part) for mirror in ("", "M")]
        for name, part in zip(SHARES, np.split(order, ends), strict=True)
    }
    train_val = sorted(found["train"] + found["val"], key=lambda name: (name[-6:], name))
    return found | {"train_val": train_val, "all": sorted(sum(found.values(), []))}


def deviations(features: np.ndarray) -> np.ndarray:
    """(N, 263) -> (263,), the same for all numbers of a kind, as HumanML3D has them."""
    own = np.split(features.std(axis=0), np.cumsum(WIDTHS)[:-1])
    return np.concatenate([np.full_like(kind, kind.mean()) for kind in own])


def write_array(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as file:
        np.save(file, array.astype(np.float32))


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def write(flags: Flags) -> None:
    """
    Raises:
        InputError: too few clips for the splits, or motions are there already.
    """
    folder = flags.out / "HumanML3D"
    if folder.exists():
        raise InputError(f"{folder} exists already: give another --out, or remove it")
    names = splits(flags.clips, flags.seed)
    if not all(names.values()):
        raise InputError(f"--clips {flags.clips} leaves a split empty: give 20 or more")
    train, seen = set(names["train"]), []
    for number in tqdm(range(1, flags.clips + 1), unit="clip", disable=not speaks()):
        joints, lines = clip(flags.seed, number)
        for mirror in ("", "M"):
            name = f"{mirror}{number:06d}"
            if mirror:
                joints, lines = mirrored(joints), [line.mirrored() for line in lines]
            features = features_of(joints).float().numpy()
            write_array(folder / "new_joint_vecs" / f"{name}.npy", features)
            write_text(folder / "texts" / f"{name}.txt", "".join(line.text() for line in lines))
            if name in train:
                seen.append(features)
    frames = np.concatenate(seen).astype(np.float64)
    mean, std = frames.mean(axis=0), deviations(frames)
    small = np.ones(WIDTH)
    small[LOUD] = LOUDER
    for path, array in (
        (folder / "Mean.npy", mean), (folder / "Std.npy", std),
        (flags.out / "t2m_mean.npy", mean), (flags.out / "t2m_std.npy", std / small),
    ):  # fmt: skip
        write_array(path, array)
    for name, listed in names.items():
        write_text(folder / f"{name}.txt", "".join(f"{one}\n" for one in listed))
    print(f"{2 * flags.clips} clips in {folder}")


def main() -> None:
    write(tyro.cli(Flags, console_outputs=speaks()))


if __name__ == "__main__":
    run(main)
