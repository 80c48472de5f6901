"""Does the effect grow with depth, at equal FLOPs, and is it labels that take its place?

python -m experiments.depths --preset digits --seeds 0 1 2
"""

import math
from dataclasses import replace
from functools import partial

from runtime.entry import run
from runtime.errors import InputError

from .rows import layer_sync, vanilla
from .runs import Run
from .sweep import Experiment, Setting, sweep

DEPTHS = (6, 12, 24)
LABELS = {"labels": {}, "no-labels": {"num_classes": 0}}


def runs(setting: Setting) -> list[Run]:
    """Each LayerSync beside the vanilla of its own depth and labels, all of one weight, learning
    rate and number of heads. Presets without labels have no rows with them."""
    term = {"reg_weight": setting.weight, "telemetry_every": setting.tenth}
    return [
        replace(row, name=f"{depth}-{labels}-{row.name}", flags=row.flags | size | condition,
                baseline=f"{depth}-{labels}-{vanilla().name}")
        for depth in DEPTHS
        for size in [sized(setting, depth)]
        for labels, condition in LABELS.items()
        if setting.labels or condition
        for row in (vanilla(), layer_sync(**pair_at(setting, depth), **term))
    ]  # fmt: skip


def sized(setting: Setting, depth: int) -> dict[str, int]:
    """Flags of a network of so many blocks and of the preset's FLOPs: a block's are as its width
    squared, but for attention's, which short sequences make small.

    Raises:
        InputError: a network whose width is not ours to choose.
    """
    if setting.hidden_size is None or setting.num_heads is None:
        raise InputError(f"--preset {setting.preset}: its network has no --hidden-size to change")
    step = math.lcm(4, setting.num_heads)  # positions take quarters of the width, heads a part each
    width = setting.hidden_size * math.sqrt(setting.depth / depth)
    return {"depth": depth, "hidden_size": step * max(1, round(width / step))}


def pair_at(setting: Setting, depth: int) -> dict[str, int]:
    """The preset's pair at the same shares of another depth."""
    student, teacher = (
        max(1, round(block * depth / setting.depth)) for block in (setting.student, setting.teacher)
    )
    return {"encoder_depth": student, "gt_encoder_depth": teacher}


TABLE = Experiment("depths", "Depth at equal FLOPs, with labels and without", ("t1-b",), runs)
main = partial(sweep, TABLE)

if __name__ == "__main__":
    run(main)
