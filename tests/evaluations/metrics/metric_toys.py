"""Seeded features for the tests of the metrics."""

import torch
from torch import Tensor


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    """Standard normal (n, d) in float64."""
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inception_like(n: int, d: int = 256, seed: int = 0, spread: float = 1.0) -> Tensor:
    """float32 features as after a ReLU, on a plane of fewer dimensions, squared norms about 587."""
    plane = normal(16, d, seed=1000)
    x = (spread * normal(n, 16, seed) @ plane / 4 + 0.3 * normal(n, d, seed + 1)).relu()
    return (x * (587 / x.square().sum(1).mean()).sqrt()).float()
