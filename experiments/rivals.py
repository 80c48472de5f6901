"""All methods in one loop under equal conditions, each with its authors' settings.

python -m experiments.rivals --preset digits --seeds 0 1 2
"""

from functools import partial

from runtime.entry import run

from .rows import dispersive, layer_sync, method, vanilla
from .runs import Run
from .sweep import SMALL_SCORING, Experiment, Setting, sweep


def runs(setting: Setting) -> list[Run]:
    """REPA's encoder knows photographs: it is left out where the data are small pictures."""
    encoders = [] if setting.dataset in SMALL_SCORING else [method("repa")]
    return [vanilla(), layer_sync(), dispersive(), method("sra"), method("sra2"), *encoders]


TABLE = Experiment("rivals", "All methods", ("t1-b", "t1-xl"), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
