"""The kernel distance (KID where the features are Inception's), with an interval."""

from typing import NamedTuple

import torch
from torch import Tensor

from runtime.random import generator

from .inputs import check_pair, in_float64
from .intervals import mean_interval

LEAST_BLOCKS = 10  # where there are rows for them: an interval over fewer is wide


class KernelDistance(NamedTuple):
    value: float  # an unbiased estimate; it may be below 0 where the distributions are equal
    low: float  # 95 % interval
    high: float


def kernel_distance(
    reference: Tensor, samples: Tensor, *, block: int = 1000, seed: int = 0
) -> KernelDistance:
    """Squared MMD with the kernel (x y / D + 1)^3, and its 95 % interval (Binkowski et al. 2018).

    Unlike a Frechet distance it is unbiased for any number of samples, so sets of different sizes
    may be compared. The value is the mean over disjoint blocks of both sets, each in an order
    drawn from the seed; the interval is Student's over these blocks. Subsets drawn with overlap, as
    in much code, are not independent, and their spread says little. Papers print the value times
    1000; it is returned raw, in float64.

    The smaller set, of n rows, makes ceil(n / block) blocks, but at least 10, unless they would
    have fewer than 2 rows. A set's blocks are equally large, at most `block`; rows that are left
    over are not used.

    Args:
        reference, samples: (N, D) and (M, D).
        block: most rows of a block.

    Raises:
        ValueError: NaN or infinity, fewer than 4 rows (2 blocks), or differing dimensions.
    """
    assert block >= 2
    check_pair(reference, samples, least=4)
    n = min(len(reference), len(samples))
    count = min(max(-(-n // block), LEAST_BLOCKS), n // 2)
    random = generator("cpu", seed, "kernel distance")
    pairs = zip(
        *(blocks(features, count, block, random) for features in (reference, samples)), strict=True
    )
    estimates = torch.stack([unbiased_mmd(x, y) for x, y in pairs])
    found = mean_interval(estimates.tolist())
    return KernelDistance(found.mean, found.low, found.high)


def blocks(features: Tensor, count: int, block: int, random: torch.Generator) -> tuple[Tensor, ...]:
    """`count` disjoint blocks of equally many rows of features (N, D), at most `block`."""
    size = min(len(features) // count, block)
    order = torch.randperm(len(features), generator=random)[: count * size]
    return features[order.to(features.device)].split(size)


def unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimate of the squared MMD from (n, D) and (m, D): no point meets itself."""
    x, y = in_float64(x), in_float64(y)
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (cubic(x, x), cubic(y, y))]
    return within[0] + within[1] - 2 * cubic(x, y).mean()


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(x y / D + 1)^3 of all pairs: (n, D), (m, D) -> (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3
