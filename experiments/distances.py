"""One student against every deeper teacher, and a plot of the scores over the distance.

python -m experiments.distances --preset digits --seeds 0 1 2
"""

from functools import partial
from pathlib import Path

from evaluations import pages
from evaluations.metrics import mean_interval
from runtime.entry import run

from . import table
from .rows import pair, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep


def runs(setting: Setting) -> list[Run]:
    student = setting.student
    return [vanilla(), *(pair(student, one) for one in range(student + 1, setting.depth + 1))]


def draw(folders: list[Path], out: Path) -> None:
    """distances.png: a panel per score, mean and deviation over seeds; vanilla is a dashed line."""
    groups = table.groups_of(table.read(folders)).values()
    names = list(dict.fromkeys(name for results in groups for r in results for name in r.scores))
    figure, axes = pages.figure_of(-(-len(names) // 3), 3)
    for name, axis in zip(names, axes.flat, strict=False):
        presets: dict[str, list[tuple[int, float, float]]] = {}
        for results in groups:
            values = [one.scores[name] for one in results if name in one.scores]
            if values:
                found = mean_interval(values)
                record = results[0].record
                if far := distance(record["flags"]):
                    points = presets.setdefault(record["preset"], [])
                    points.append((far, found.mean, found.std or 0.0))
                else:
                    axis.axhline(found.mean, color="grey", linestyle="--", linewidth=1)
        for preset, points in presets.items():
            x, y, deviation = zip(*points, strict=True)
            axis.errorbar(x, y, deviation, marker="o", capsize=3, label=preset)
        axis.set_title(name)
        axis.set_xlabel("teacher - student")
        axis.legend()
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    pages.save(figure, out / "distances.png")


def distance(flags: dict[str, int]) -> int:
    return flags.get("gt_encoder_depth", 0) - flags.get("encoder_depth", 0)


TABLE = Experiment("distances", "Every teacher", ("t1-b",), runs, finish=draw)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
