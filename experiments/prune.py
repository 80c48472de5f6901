"""Prune, then fine-tune, against a smaller model from scratch: does alignment make blocks spare?

python -m experiments.prune --preset digits --seeds 0 1 2
"""

from functools import partial

from runtime.entry import run

from .runs import Run
from .sweep import Experiment, Setting, sweep


def runs(setting: Setting) -> list[Run]:
    """Every second block between student and teacher is taken out of a trained model, and the rest
    is fine-tuned. `scratch` has the depth that is left and as many steps as the fine-tuning;
    `scratch-twice` as many as fine-tuning and parent together, though the parent's are dearer by
    the blocks that it has more."""
    pruned = list(range(setting.student + 1, setting.teacher, 2))
    depth = setting.depth - len(pruned)
    plain = {"loss_type": "vanilla", "depth": depth}
    tuned = plain | {"prune_blocks": pruned}
    return [
        Run("scratch", plain),
        Run("scratch-twice", plain | {"max_steps": 2 * setting.steps}),
        Run("pruned-vanilla", tuned, parent={"loss_type": "vanilla"}),
        Run("pruned-layer_sync", tuned, parent={"loss_type": "layer_sync"}),
    ]


PRUNE = Experiment("prune", "Pruned and fine-tuned, or small from scratch", ("t1-b",), runs)
main = partial(sweep, PRUNE)

if __name__ == "__main__":
    run(main)
