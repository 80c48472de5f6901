"""Which pair to align: student and teacher blocks ranked by what was measured of the blocks.

python -m evaluations.suggest_pairs results/000-SiT-Ti-2-digits
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tyro

from evaluations import probes
from evaluations.features import Study, StudyFlags
from layersync import admissible_pairs, default_pair
from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.text import columns

WORTH = 0.05  # of a teacher over its student, below which there is little to hand on


@dataclass(frozen=True)
class Flags(StudyFlags):
    """Rank pairs by how much better the teacher tells the classes than the student.

    LayerSync hands on what a deep block knows and a shallow one does not. A ridge probe measures
    every block of a vanilla checkpoint, at a quarter of the training or later; pairs that the rule
    of the paper's section 3.4 allows are ranked by the gap. Gaps within the probe's own error
    (about 1 point on 2,000 images) are equal.

    python -m evaluations.suggest_pairs results/000-SiT-Ti-2-digits
    """

    noise: float = 0.3  # share of noise in the input: what the blocks see in training
    images: int = 3000  # that the probes are fitted to, at most
    top: int = 5  # pairs that are named


class Pair(NamedTuple):
    student: int
    teacher: int
    gap: float  # accuracy of the teacher's probe minus the student's


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    if flags.images < 1 or flags.top < 1:
        raise InputError("--images and --top: give 1 or more")
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
    """What the JSON holds; the same on all ranks."""
    accuracy = qualities(study, flags.images)
    pairs = ranked(accuracy)
    return {
        "network": study.subject.name, "data": study.domain.name, "view": study.subject.identity,
        "accuracy": accuracy, "pairs": [pair._asdict() for pair in pairs[: flags.top]],
        "paper": list(default_pair(len(accuracy))),
    }  # fmt: skip


def qualities(study: Study, most: int) -> list[float]:
    """The accuracy of a ridge probe on every block."""
    study.class_names()
    train = study.pooled(held_out=False, most=most)
    test = study.pooled(held_out=True, most=most)
    return study.ranks.from_main(
        lambda: [
            probes.ridge_accuracy(train.of(block), train.classes, test.of(block), test.classes)
            for block in train.blocks
        ]
    )


def ranked(accuracy: Sequence[float]) -> list[Pair]:
    """The pairs of section 3.4, the largest gap first; of equal ones that with the deeper student,
    below which more of the network is taught."""
    pairs = [
        Pair(student, teacher, accuracy[teacher - 1] - accuracy[student - 1])
        for student, teacher in admissible_pairs(len(accuracy))
    ]
    return sorted(pairs, key=lambda pair: (-round(pair.gap, 4), -pair.student))


def as_text(found: dict[str, Any]) -> str:
    accuracy = found["accuracy"]
    student, teacher = found["paper"]
    paper = Pair(student, teacher, accuracy[teacher - 1] - accuracy[student - 1])
    named = [("the paper's rule", paper)]
    named += [(f"{n}.", Pair(**pair)) for n, pair in enumerate(found["pairs"], start=1)]
    rows = [
        [name, f"{one.student}:{one.teacher}", f"{accuracy[one.student - 1]:.2%}",
         f"{accuracy[one.teacher - 1]:.2%}", f"{one.gap:+.2%}"]
        for name, one in named
    ]  # fmt: skip
    best = named[1][1] if len(named) > 1 else paper
    said = (
        f"try --encoder-depth {best.student} --gt-encoder-depth {best.teacher}: block "
        f"{best.teacher} tells {best.gap:.1%} more images apart than block {best.student}"
        if best.gap >= WORTH
        else f"no teacher is {WORTH:.0%} better than a student that it may have: there is little "
        "to hand on, and LayerSync is not expected to help here"
    )
    blocks = " ".join(f"{value:.1%}" for value in accuracy)
    return "\n".join(
        [
            f"{found['network']}: a ridge probe of {found['data']} reads from blocks 1, 2, ...: "
            f"{blocks}",
            columns(["", "pair", "student", "teacher", "gap"], rows),
            said,
        ]
    )


if __name__ == "__main__":
    run(main)
