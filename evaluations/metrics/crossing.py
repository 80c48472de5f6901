"""How much sooner one run has the final loss of another: what the paper's 8.75x counts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000  # of the bootstrap


class SpeedUp(NamedTuple):
    """The baseline's steps over those that another run takes to the baseline's final loss, and the
    95 % interval. None: it is not there in the steps it has, so the ratio is below 1, and by how
    much is not known."""

    ratio: float | None
    low: float | None
    high: float | None
    reached: float  # share of the bootstrap's draws in which it gets there


def crossing(steps: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """The step at which a falling curve first has a loss, on straight lines between its points;
    None: never. Nothing is extrapolated: a curve that starts below has it at its first point."""
    there = np.flatnonzero(np.asarray(losses) <= target)
    if not len(there):
        return None
    at = int(there[0])
    if at == 0:
        return float(steps[0])
    above, below = losses[at - 1], losses[at]
    share = (above - target) / (above - below)
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))


class Pace(NamedTuple):
    """The baseline's steps over another run's to the same score, and the 95 % interval."""

    ratio: float
    low: float
    high: float


def pace(
    steps: Sequence[float], baseline: np.ndarray, other: np.ndarray, seed: int = 0
) -> Pace | None:
    """To the worse of both final scores, which both have: where the other one never has the
    baseline's, the baseline is timed to the other's. By the mean curves; the bootstrap draws seeds.
    None: one of them has it at the first step, so that no more than a bound is known.

    Args:
        steps: (S,), rising.
        baseline, other: scores of which less is better (seeds, S), paired by seed.
    """
    random = np.random.default_rng(seed)
    seeds = len(baseline)
    worst = max(scores.mean(0)[-1] for scores in (baseline, other))
    if min(scores.mean(0)[0] for scores in (baseline, other)) <= worst:
        return None

    def ratio(chosen: np.ndarray) -> float:
        curves = [scores[chosen].mean(0) for scores in (baseline, other)]
        target = max(curve[-1] for curve in curves)
        first, second = (crossing(steps, curve, target) for curve in curves)
        return first / second

    drawn = [ratio(random.integers(seeds, size=seeds)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Pace(ratio(np.arange(seeds)), float(low), float(high))


def speed_up(
    steps: Sequence[float], baseline: np.ndarray, other: np.ndarray, seed: int = 0
) -> SpeedUp:
    """By the mean curves of both; the bootstrap draws seeds and images, the same for both. Of three
    seeds its interval is too narrow rather than too wide.

    Args:
        steps: (S,), rising.
        baseline, other: losses (seeds, S, images), paired by seed and by image.
    """
    random = np.random.default_rng(seed)
    seeds, _, images = baseline.shape

    def ratio(chosen: np.ndarray, weights: np.ndarray) -> float:
        """0 where it is never there."""
        first, second = (losses[chosen].mean(0) @ weights for losses in (baseline, other))
        step = crossing(steps, second, first[-1])
        return steps[-1] / step if step else 0.0

    drawn = [
        ratio(
            random.integers(seeds, size=seeds),
            random.multinomial(images, np.full(images, 1 / images)) / images,
        )
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975), method="inverted_cdf")
    found = ratio(np.arange(seeds), np.full(images, 1 / images))
    reached = float(np.mean(np.array(drawn) > 0))
    return SpeedUp(found or None, float(low) or None, float(high) or None, reached)
