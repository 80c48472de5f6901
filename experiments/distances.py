"""A student against every deeper teacher, a teacher against every student, and a plot of both.

python -m experiments.distances --preset digits --seeds 0 1 2
"""

from functools import partial
from pathlib import Path
from typing import Any

from evaluations import pages
from evaluations.metrics import mean_interval
from runtime.entry import run

from . import table
from .rows import pair, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep


def runs(setting: Setting) -> list[Run]:
    student, teacher = setting.student, setting.teacher
    with_student = [(student, one) for one in range(student + 1, setting.depth + 1)]
    with_teacher = [(one, teacher) for one in range(1, teacher)]
    return [vanilla(), *(pair(*one) for one in dict.fromkeys([*with_student, *with_teacher]))]


def draw(folders: list[Path], out: Path) -> None:
    """distances.png: a panel per score, mean and deviation over seeds; a line for the rows of one
    student and for those of one teacher; vanilla is dashed."""
    groups = table.groups_of(table.read(folders)).values()
    names = list(dict.fromkeys(name for results in groups for r in results for name in r.scores))
    figure, axes = pages.figure_of(-(-len(names) // 3), 3)
    for name, axis in zip(names, axes.flat, strict=False):
        lines: dict[str, list[tuple[int, float, float]]] = {}
        for results in groups:
            values = [one.scores[name] for one in results if name in one.scores]
            if values:
                found = mean_interval(values)
                record = results[0].record
                if far := distance(record["flags"]):
                    for line in lines_of(record):
                        points = lines.setdefault(line, [])
                        points.append((far, found.mean, found.std or 0.0))
                else:
                    axis.axhline(found.mean, color="grey", linestyle="--", linewidth=1)
        for line, points in lines.items():
            x, y, deviation = zip(*sorted(points), strict=True)
            axis.errorbar(x, y, deviation, marker="o", capsize=3, label=line)
        axis.set_title(name)
        axis.set_xlabel("teacher - student")
        axis.legend()
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    pages.save(figure, out / "distances.png")


def distance(flags: dict[str, int]) -> int:
    return flags.get("gt_encoder_depth", 0) - flags.get("encoder_depth", 0)


def lines_of(record: dict[str, Any]) -> list[str]:
    """The preset's own pair is in both."""
    student, teacher = record["pair"]
    shared = {
        f"student {student}": record["flags"]["encoder_depth"] == student,
        f"teacher {teacher}": record["flags"]["gt_encoder_depth"] == teacher,
    }
    return [f"{record['preset']}, {name}" for name, holds in shared.items() if holds]


TABLE = Experiment("distances", "Every teacher, every student", ("t1-b",), runs, finish=draw)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
