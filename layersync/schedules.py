"""Schedules of the weight: step -> factor in [0, 1]. `LayerSync(pairs, schedule=stop_at(1000))`."""

import math
from collections.abc import Callable
from functools import partial

Schedule = Callable[[int], float]


def constant(step: int) -> float:
    """The paper's: full weight throughout."""
    return 1.0


def linear_decay(steps: int) -> Schedule:
    """From 1 at step 0 to 0 at `steps` (at least 1), then 0."""
    return partial(_linear, at_least_one(steps))


def cosine_decay(steps: int) -> Schedule:
    """Half a cosine from 1 at step 0 to 0 at `steps` (at least 1), then 0."""
    return partial(_cosine, at_least_one(steps))


def stop_at(steps: int) -> Schedule:
    """Full weight before step `steps`, none from it on (HASTE's early stop, arXiv 2505.16792)."""
    return partial(_stop, steps)


def sra_decay(steps_per_epoch: int, last_full: int = 149, per_tenth: int = 1000) -> Schedule:
    """SRA's (arXiv 2505.02831): 1 up to epoch `last_full`, then a tenth every `per_tenth` epochs,
    epochs counted from 0 as steps are. For 512 px: last_full=99, per_tenth=800."""
    return partial(_sra, at_least_one(steps_per_epoch), last_full, per_tenth)


# Functions of the module and no lambdas, so that a LayerSync can be pickled and sent to a process.


def _linear(steps: int, step: int) -> float:
    return max(0.0, 1.0 - step / steps)


def _cosine(steps: int, step: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0)))


def _stop(steps: int, step: int) -> float:
    return 1.0 if step < steps else 0.0


def _sra(steps_per_epoch: int, last_full: int, per_tenth: int, step: int) -> float:
    return 10.0 ** (-max(0, step // steps_per_epoch - last_full) / per_tenth)


def at_least_one(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"a weight cannot decay over {steps} steps: give at least 1")
    return steps


# What `--reg-schedule NAME --reg-schedule-steps N` builds.
SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "constant": lambda steps: constant,
    "linear": linear_decay,
    "cosine": cosine_decay,
    "stop": stop_at,
}
