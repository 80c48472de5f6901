"""Table 2: SiT-XL after 800 epochs, with guidance.

python -m experiments.table2 --preset digits --seeds 0 1 2
"""

from functools import partial

from runtime.entry import run

from .rows import layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

PAPER = {"t2": {"fid": 1.89}}


def runs(setting: Setting) -> list[Run]:
    return [vanilla(), layer_sync(paper=PAPER.get(setting.preset))]


TABLE = Experiment(
    "table2",
    "Table 2: long training, with guidance",
    ("t2",),
    runs,
    protocol="paper-sde",
    # The paper does not say which channels its guidance of 1.37 is for: both are scored.
    samplings=lambda setting: {"three-channels": (), "all-channels": ("--cfg-channels", "all")},
)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
