"""How well a mean over independent sample sets is known."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

# 97.5 % points of Student's t, by degrees of freedom from 1; the expansion is good from 10 on.
T_TABLE = (
    12.7062047, 4.3026527, 3.1824463, 2.7764451, 2.5705818, 2.4469119, 2.3646243, 2.3060041,
    2.2621572,
)  # fmt: skip
NORMAL = NormalDist().inv_cdf(0.975)


class Interval(NamedTuple):
    """A mean and its 95 % interval; one value has neither interval nor spread."""

    mean: float
    low: float | None
    high: float | None
    std: float | None  # of the values, divisor n - 1
    n: int


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of a score over n independent sample sets, with Student's 95 % interval.

    Raises:
        ValueError: no values, or NaN or infinity among them.
    """
    n = len(values)
    if not n:
        raise ValueError("an interval needs at least one value")
    if not all(map(math.isfinite, values)):
        raise ValueError("values hold NaN or infinity")
    mean = fmean(values)
    if n == 1:
        return Interval(mean, None, None, None, n)
    std = stdev(values)
    reach = student_t(n - 1) * std / math.sqrt(n)
    return Interval(mean, mean - reach, mean + reach, std, n)


def student_t(freedom: int) -> float:
    """The 97.5 % point of Student's t to 1e-5 (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(T_TABLE):
        return T_TABLE[freedom - 1]
    z, v = NORMAL, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
