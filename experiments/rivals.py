"""All methods in one loop under equal conditions, each with its authors' settings.

python -m experiments.rivals --preset digits --seeds 0 1 2
"""

from functools import partial

import domains
from runtime.entry import run

from .rows import dispersive, layer_sync, method, vanilla
from .runs import Run
from .scoring import SCORINGS
from .sweep import Experiment, Setting, sweep


def runs(setting: Setting) -> list[Run]:
    """REPA sees photographs: it is left out where the data are small pictures, or latents. For
    those store its tokens, methods.features --encoder, and give train.py --loss-type external."""
    seen = setting.dataset not in SCORINGS and not domains.stored_latents(setting.data_path)
    encoders = [method("repa")] if seen else []
    return [vanilla(), layer_sync(), dispersive(), method("sra"), method("sra2"), *encoders]


TABLE = Experiment("rivals", "All methods", ("t1-b", "t1-xl"), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
