"""Table 1: LayerSync beside plain SiT and the Dispersive loss on SiT-B, L and XL.

python -m experiments.table1 --preset digits --seeds 0 1 2
"""

from functools import partial

from runtime.entry import run
from transport import PROTOCOLS

from .rows import methods
from .runs import Run
from .scoring import SCORINGS
from .sweep import Experiment, Setting, sweep

# By preset. The scan lost the table itself: B's are repeated in Table 5, XL's in the text.
PAPER = {
    "t1-b": {"vanilla": {"fid": 36.19}, "dispersive": {"fid": 32.45}},
    "t1-xl": {"layer_sync": {"fid": 8.29}},
}


def runs(setting: Setting) -> list[Run]:
    return methods(PAPER.get(setting.preset, {}))


def samplings(setting: Setting) -> dict[str, tuple[str, ...]]:
    """Of the paper's images both readings of its 250 steps of Heun: time points, and calls."""
    if setting.dataset in SCORINGS:
        return {"samples": ()}
    points = PROTOCOLS["paper-ode-250"]["num_sampling_steps"]
    return {"samples": (), "250-calls": ("--num-sampling-steps", str(points))}


PRESETS = ("t1-b", "t1-l", "t1-xl")
TABLE = Experiment("table1", "Table 1: methods", PRESETS, runs, samplings=samplings)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
