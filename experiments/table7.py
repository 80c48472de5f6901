"""Table 7: video, from scratch on CLEVRER and fine-tuned on SSv2: the network as it is trained
without a term, the Dispersive loss and LayerSync.

python -m experiments.moving --out data/moving
python -m experiments.table7 --preset moving --seeds 0 1 2
python -m experiments.table7 --preset wan-ssv2 --gpus-per-run 8 -- --data-path SSv2 --grad-accum 2
"""

from functools import partial

from runtime.entry import run

from .rows import methods
from .runs import Run
from .sweep import Experiment, Setting, sweep

PAPER = {
    "t7": {
        "vanilla": {"fvd": 265.50},
        "dispersive": {"fvd": 165.12},
        "layer_sync": {"fvd": 120.13},
    },
    "wan-ssv2": {
        "vanilla": {"fvd": 363.98},
        "dispersive": {"fvd": 372.43},
        "layer_sync": {"fvd": 280.78},
    },
    "cogvideox-ssv2": {
        "vanilla": {"fvd": 371.88},
        "dispersive": {"fvd": 342.10},
        "layer_sync": {"fvd": 300.91},
    },
}


def runs(setting: Setting) -> list[Run]:
    return methods(PAPER.get(setting.preset, {}))


TABLE = Experiment("table7", "Table 7: video", tuple(PAPER), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
