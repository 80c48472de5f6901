"""Table 7: video from scratch: plain SiT, the Dispersive loss and LayerSync on CLEVRER.

python -m experiments.moving --out data/moving
python -m experiments.table7 --preset moving --seeds 0 1 2
"""

from functools import partial

from runtime.entry import run

from .rows import dispersive, layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

PAPER = {
    "t7": {
        "vanilla": {"fvd": 265.50},
        "dispersive": {"fvd": 165.12},
        "layer_sync": {"fvd": 120.13},
    }
}


def runs(setting: Setting) -> list[Run]:
    paper = PAPER.get(setting.preset, {})
    return [
        vanilla(**paper.get("vanilla", {})),
        dispersive(**paper.get("dispersive", {})),
        layer_sync(paper=paper.get("layer_sync")),
    ]


TABLE = Experiment("table7", "Table 7: video from scratch", ("t7",), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
