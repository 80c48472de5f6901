"""Which pair to align: student and teacher blocks ranked by what was measured of the blocks.

python -m evaluations.suggest_pairs results/000-SiT-Ti-2-digits
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tyro

from domains.reading import chosen
from evaluations import probes
from evaluations.features import Study, StudyFlags
from layersync import admissible_pairs, default_pair
from runtime import distributed
from runtime.config import at_least, checked
from runtime.entry import asked_of_user, run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.text import columns

WORTH = 0.05  # of a teacher over its student, below which there is little to hand on
LEAST = 200  # images; fewer tell no two blocks apart


@dataclass(frozen=True)
class Flags(StudyFlags):
    """Rank pairs by how much better the teacher tells the classes than the student.

    LayerSync is thought to hand on what a deep block knows and a shallow one does not. A ridge
    probe, fitted to two thirds of some training images and tested on the rest, measures every
    block of a vanilla checkpoint, at a quarter of the training or later; pairs that the rule of
    the paper's section 3.4 allows are ranked by the gap. Among pairs within the error of the best
    the paper's is suggested, or else the one with the deepest student. It is a hypothesis to train
    with, not a finding.

    $ python -m evaluations.suggest_pairs results/000-SiT-Ti-2-digits
    """

    noise: float = 0.3  # 1 - t, share of noise in the input: what the blocks see in training
    images: int = 6000  # training images, at most
    top: int = 5  # pairs that are named


class Pair(NamedTuple):
    student: int
    teacher: int
    gap: float  # accuracy of the teacher's probe minus the student's
    error: float  # two standard errors of it


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    at_least(flags, images=LEAST, top=1)
    if flags.blocks:
        raise InputError("--blocks: pairs are chosen among all blocks, leave it out")
    ranks = distributed.start(flags.device)
    study = Study(flags, ranks)
    found = suggested(study, flags)

    def tell() -> None:
        path = study.folder / "pairs.json"
        write_json(path, found)
        print(f"{as_text(found)}\n{path}")

    ranks.from_main(tell)


def suggested(study: Study, flags: Flags) -> dict[str, Any]:
    """What the JSON holds; the same on all ranks.

    Raises:
        InputError: too few blocks for a pair, or images without classes.
    """
    with asked_of_user(about=study.subject.name):
        paper = default_pair(len(study.subject.blocks))
        if not admissible_pairs(len(study.subject.blocks)):
            raise ValueError(f"of {len(study.subject.blocks)} blocks section 3.4 allows no pair")
    accuracy, tested = qualities(study, flags.images)
    pairs = ranked(accuracy, tested)
    return {
        "network": study.subject.name, "data": study.domain.name, "view": study.subject.identity,
        "accuracy": accuracy, "tested_images": tested,
        "pairs": [pair._asdict() for pair in pairs[: flags.top]],
        "paper": measured(*paper, accuracy, tested)._asdict(),
        "suggested": suggestion(pairs, paper)._asdict(),
    }  # fmt: skip


def qualities(study: Study, most: int) -> tuple[list[float], int]:
    """The accuracy of a ridge probe on every block, and of how many images; training images alone:
    what is held out stays unseen."""
    study.class_names()
    found = study.pooled(held_out=False, most=most)
    # Where all images were looked at, they may lie sorted by class.
    order = chosen(len(found.labels), None, study.flags.seed, "probe")
    cut = 2 * len(order) // 3
    fitted, tested = order[:cut], order[cut:]

    def accuracy(block: int) -> float:
        x, y = found.of(block), found.classes
        return probes.ridge_accuracy(x[fitted], y[fitted], x[tested], y[tested])

    values = study.ranks.from_main(lambda: [accuracy(block) for block in found.blocks])
    return values, len(tested)


def measured(student: int, teacher: int, accuracy: Sequence[float], tested: int) -> Pair:
    ends = accuracy[student - 1], accuracy[teacher - 1]
    variance = sum(value * (1 - value) for value in ends) / tested
    return Pair(student, teacher, ends[1] - ends[0], 2 * variance**0.5)


def ranked(accuracy: Sequence[float], tested: int) -> list[Pair]:
    """The pairs of section 3.4, the largest gap first."""
    pairs = [
        measured(student, teacher, accuracy, tested)
        for student, teacher in admissible_pairs(len(accuracy))
    ]
    return sorted(pairs, key=lambda pair: -pair.gap)


def suggestion(pairs: Sequence[Pair], paper: tuple[int, int]) -> Pair:
    """Of the pairs that the error does not tell from the best: the paper's, else the one below
    whose student most of the network lies."""
    best = pairs[0]
    equal = [pair for pair in pairs if best.gap - pair.gap <= best.error]
    own = [pair for pair in equal if pair[:2] == paper]
    return own[0] if own else max(equal, key=lambda pair: (pair.student, pair.gap))


def as_text(found: dict[str, Any]) -> str:
    accuracy = found["accuracy"]
    named = [("the paper's", Pair(**found["paper"]))]
    named += [(f"{n}.", Pair(**pair)) for n, pair in enumerate(found["pairs"], start=1)]
    rows = [
        [name, f"{one.student}:{one.teacher}", f"{accuracy[one.student - 1]:.2%}",
         f"{accuracy[one.teacher - 1]:.2%}", f"{one.gap:+.2%}", f"{one.error:.2%}"]
        for name, one in named
    ]  # fmt: skip
    blocks = " ".join(f"{value:.1%}" for value in accuracy)
    return "\n".join(
        [
            f"{found['network']}: a ridge probe of {found['data']} reads from blocks 1, 2, ...: "
            f"{blocks}",
            columns(["", "pair", "student", "teacher", "gap", "error"], rows),
            advice(Pair(**found["suggested"]), Pair(**found["pairs"][0])),
        ]
    )


def advice(suggested: Pair, widest: Pair) -> str:
    if suggested.gap >= WORTH:
        return (
            f"try --encoder-depth {suggested.student} --gt-encoder-depth {suggested.teacher}: "
            f"block {suggested.teacher} tells {suggested.gap:.1%} more images apart than block "
            f"{suggested.student}"
        )
    if widest.gap >= WORTH:
        return (
            f"pair {widest.student}:{widest.teacher} has a gap that so few images do not tell from "
            f"that of {suggested.student}:{suggested.teacher}: give more --images"
        )
    return f"no teacher is {WORTH:.0%} better than a student that it may have: little to hand on"


if __name__ == "__main__":
    run(main)
