"""Small stand-ins for networks, and the public code's figures, shared by the tests of transport."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from transport import PATHS

CONTINUOUS = [name for name, path in PATHS.items() if path.steps is None]
SITS = ("velocity", "noise", "score")  # predictions that SiT has, too
COMBINATIONS = [(path, prediction) for path in CONTINUOUS for prediction in SITS]


def golden() -> dict[str, np.ndarray]:
    """Results of the public SiT code on `toy_field`, by name (kept in float32, made on CPU)."""
    with np.load(Path(__file__).with_name("golden.npz")) as file:
        return dict(file)


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers from numpy's frozen PCG64 stream."""
    numbers = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    return torch.from_numpy(numbers.astype(np.float32))


def toy_field(x: Tensor, t: Tensor) -> Tensor:
    """The smooth field behind the golden figures: x (B, ...), t (B,)."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    return 0.7 * torch.tanh(x * (0.5 + t)) - 0.1 * t * x


class Recorder:
    """Wraps a model function and notes, per call, the time, the batch size and the dtype."""

    def __init__(self, function=toy_field):
        self.function = function
        self.times: list[float] = []
        self.batches: list[int] = []
        self.dtypes: list[torch.dtype] = []

    def __call__(self, x, t, **cond):
        self.times.append(t[0].item())
        self.batches.append(len(x))
        self.dtypes.append(x.dtype)
        return self.function(x, t, **cond)


class Gaussian(NamedTuple):
    """Independent data N(mean, deviation^2): every prediction is known in closed form."""

    path: str
    prediction: str = "velocity"
    mean: float = 0.8
    deviation: float = 0.5

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        s = PATHS[self.path].at(t, x)
        variance = s.alpha**2 * self.deviation**2 + s.sigma**2
        score = -(x - s.alpha * self.mean) / variance
        if self.prediction == "score":
            return score
        if self.prediction == "noise":
            return -s.sigma * score
        if self.prediction == "data":
            return (x + s.sigma**2 * score) / s.alpha
        growth = s.alpha * s.d_alpha * self.deviation**2 + s.sigma * s.d_sigma
        return s.d_alpha * self.mean - growth * score

    def log_density(self, x: Tensor) -> Tensor:
        distribution = torch.distributions.Normal(self.mean, self.deviation)
        return distribution.log_prob(x).flatten(1).sum(1)
