"""Table 4: human motion, MDM and MDM with LayerSync on HumanML3D.

python -m experiments.table4 --preset motions --seeds 0 1 2 --samples 640 --reference \
    evaluators/motions -- --data-path data/motions/HumanML3D --text-encoder encoders/motions
"""

from functools import partial

from runtime.entry import run

from .rows import layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

PAPER = {
    "t4": {
        "vanilla": {"fid": 0.5206, "r_precision_3": 0.7202},
        "layer_sync": {"fid": 0.4801, "r_precision_3": 0.7454},
    }
}


def runs(setting: Setting) -> list[Run]:
    paper = PAPER.get(setting.preset, {})
    return [vanilla(**paper.get("vanilla", {})), layer_sync(paper=paper.get("layer_sync"))]


TABLE = Experiment("table4", "Table 4: human motion", ("t4",), runs, protocol="mdm")
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
