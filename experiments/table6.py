"""Table 6: the weight of the term.

python -m experiments.table6 --preset digits --seeds 0 1 2
"""

from functools import partial

from runtime.entry import run

from .rows import layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

# The paper's, besides 0, which is plain SiT, and then a smaller and a larger one.
WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.02, 1.0)
PAPER = {
    "t6": {
        0: {"fid": 36.19},
        0.1: {"fid": 31.63, "inception_score": 44.9},
        0.2: {"fid": 31.02, "inception_score": 46.12},
        0.3: {"fid": 31.6, "inception_score": 44.56},
        0.5: {"fid": 31.17, "inception_score": 45.65},
        0.7: {"fid": 31.36, "inception_score": 45.2},
    }
}


def runs(setting: Setting) -> list[Run]:
    """Beside each weight stands the gradient ratio that it comes to: other settings go by that."""
    paper = PAPER.get(setting.preset, {})
    seen = {"telemetry_every": setting.tenth}
    return [
        vanilla(**paper.get(0, {})),
        *(
            layer_sync(f"weight-{one:g}", reg_weight=one, paper=paper.get(one), **seen)
            for one in WEIGHTS
        ),
    ]


TABLE = Experiment("table6", "Table 6: weights", ("t6",), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
