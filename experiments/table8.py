"""Table 8: what samples lose when blocks between the aligned ones are left out.

python -m experiments.table8 --preset digits --seeds 0 1 2
"""

from functools import partial

from runtime.entry import run

from .rows import layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

# FID of the paper, by preset and way of sampling.
PAPER = {
    "t8": {
        "vanilla": {"FID, whole": 37.03, "FID, between": 211.66},
        "layer_sync": {"FID, whole": 25.72, "FID, between": 55.07},
    }
}


def runs(setting: Setting) -> list[Run]:
    paper = PAPER.get(setting.preset, {})
    return [vanilla(**paper.get("vanilla", {})), layer_sync(paper=paper.get("layer_sync"))]


def samplings(setting: Setting) -> dict[str, tuple[str, ...]]:
    """The whole model; without every second block between student and teacher, [9, 11, 13, 15] of
    7:16; without one after the teacher (21) and one before the student (1); without all of them."""
    first, last = setting.student, setting.teacher
    between = tuple(range(first + 2, last, 2)) or tuple(range(first + 1, last))
    after = min(last + 5, setting.depth)
    rows = {
        "whole": (), "between": between, "after": (*between, after), "before": (1, *between),
        "all": (1, *between, after),
    }  # fmt: skip
    return {
        name: ("--skip-blocks", *map(str, blocks)) if blocks else ()
        for name, blocks in rows.items()
    }


TABLE = Experiment("table8", "Table 8: blocks left out", ("t8",), runs, samplings=samplings)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
