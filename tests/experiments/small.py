"""A sweep of two runs, as small as they come; the tests run it as a person runs a table.

python -m tests.experiments.small --preset digits --results /tmp/results
"""

from functools import partial

from experiments.rows import layer_sync, vanilla
from experiments.runs import Run
from experiments.sweep import Experiment, Setting, sweep
from runtime.entry import run


def runs(setting: Setting) -> list[Run]:
    return [vanilla(), layer_sync()]


SMALL = Experiment("small", "Two runs", ("digits",), runs)
main = partial(sweep, SMALL)

if __name__ == "__main__":
    run(main)
