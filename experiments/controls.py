"""Controls: whether LayerSync's own direction, teacher and stop-gradient are what matters.

python -m experiments.controls --preset digits --seeds 0 1 2
"""

from functools import partial

from runtime.entry import run

from .rows import layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep


def runs(setting: Setting) -> list[Run]:
    return [
        vanilla(),
        layer_sync(),
        layer_sync("without-stop-gradient", stop_gradient=False),
        layer_sync("reversed", reverse_sync=True),
        layer_sync("teacher-of-another-image", teacher="other_image"),
        layer_sync("random-teacher", teacher="random"),
        layer_sync("ema-teacher", teacher="ema"),
    ]


TABLE = Experiment("controls", "Controls", ("t1-b",), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
