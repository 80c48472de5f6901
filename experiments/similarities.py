"""What is compared: the similarities of LayerSync (open question 3 of the paper).

python -m experiments.similarities --preset digits --seeds 0 1 2
"""

from functools import partial

from runtime.config import COSINES
from runtime.entry import run

from .rows import layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

SIMILARITIES = ("cosine", "centred", "spatial", "smooth_l1", "relation")


def runs(setting: Setting) -> list[Run]:
    """All at the preset's weight, though they are of different scale: read each row's gradient
    ratio, and repeat the table with -- --reg-weight W. Of images, TRD is the relation."""

    def weight(similarity: str) -> dict[str, float]:
        """What has to be said of it, where it would have another one of its own."""
        alike = {similarity, setting.similarity} <= COSINES
        return {} if alike else {"reg_weight": setting.weight}

    seen = {"telemetry_every": setting.tenth}
    return [
        vanilla(),
        *(layer_sync(one, similarity=one, **seen, **weight(one)) for one in SIMILARITIES),
    ]


TABLE = Experiment("similarities", "Similarities", ("t1-b",), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
