"""Table 3: music, plain SiT and LayerSync after 465 and 650 epochs of MTG-Jamendo.

python -m experiments.table3 --preset instruments --seeds 0 1 -- --data-path data/instruments
"""

from functools import partial

from runtime.entry import run

from .rows import layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

PAPER = {
    "t3-465": {"vanilla": {"fad": 0.333}, "layer_sync": {"fad": 0.263}},
    "t3-650": {"vanilla": {"fad": 0.251}, "layer_sync": {"fad": 0.199}},
}


def runs(setting: Setting) -> list[Run]:
    paper = PAPER.get(setting.preset, {})
    return [vanilla(**paper.get("vanilla", {})), layer_sync(paper=paper.get("layer_sync"))]


TABLE = Experiment("table3", "Table 3: music", ("t3-465", "t3-650"), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
