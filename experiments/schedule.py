"""When the term acts: from which step, until which (open question 2 of the paper), at which t.

python -m experiments.schedule --preset digits --seeds 0 1 2
"""

from functools import partial

from runtime.entry import run

from .rows import layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

STARTS, STOPS = (10, 30), (25, 50, 75)  # percent of the run
DECAYS = ("linear", "cosine")  # to nothing at the run's end
TIMES = (("noisier-half", 0.0, 0.5), ("middle", 0.2, 0.8), ("cleaner-half", 0.5, 1.0))  # t


def runs(setting: Setting) -> list[Run]:
    def steps(percent: int) -> int:
        return max(1, setting.steps * percent // 100)

    return [
        vanilla(),
        layer_sync(),
        *(layer_sync(f"from-{percent}", reg_start=steps(percent)) for percent in STARTS),
        *(
            layer_sync(f"until-{one}", reg_schedule="stop", reg_schedule_steps=steps(one))
            for one in STOPS
        ),
        *(layer_sync(one, reg_schedule=one, reg_schedule_steps=setting.steps) for one in DECAYS),
        *(layer_sync(name, sync_t_low=low, sync_t_high=high) for name, low, high in TIMES),
        layer_sync(
            "from-10-until-30",
            reg_start=steps(10), reg_schedule="stop", reg_schedule_steps=steps(20),
        ),
    ]  # fmt: skip


TABLE = Experiment("schedule", "When the term acts", ("t1-b",), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
