"""The Frechet distance between two sets of features, in float64."""

from typing import NamedTuple

import torch
from torch import Tensor

from .inputs import check_dimensions, check_features, float64_device


class Gaussian(NamedTuple):
    """Stored statistics: ADM's `mu` and `sigma`."""

    mean: Tensor  # (D,)
    covariance: Tensor  # (D, D), divisor N - 1


class Moments:
    """Mean and covariance of features (N, D) that come in batches of any size.

    Batches are merged by their means and scatter matrices (Chan et al.), which loses no digits
    where the mean is large against the spread.

    Args:
        device: where they are summed in float64; one that has it.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        self.n = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """All at once, on the device of the features if it has float64."""
        check_features(features)
        return cls(features.shape[1], float64_device(features.device)).update(features)

    def update(self, features: Tensor) -> "Moments":
        """Add features (n, D) from any device.

        Raises:
            ValueError: NaN or infinity among them, or another dimension.
        """
        check_features(features)
        check_dimensions(len(self.mean), features.shape[1])
        if not len(features):
            return self
        features = features.detach().to(self.mean.device).double()
        mean = features.mean(0)
        centered = features - mean
        self.scatter.addmm_(centered.T, centered)
        return self.add_mean(len(features), mean)

    def merge(self, other: "Moments") -> "Moments":
        """Add all that `other` has seen.

        Raises:
            ValueError: it is of another dimension.
        """
        check_dimensions(len(self.mean), len(other.mean))
        if not other.n:
            return self
        self.scatter += other.scatter.to(self.scatter.device)
        return self.add_mean(other.n, other.mean.to(self.mean.device))

    def add_mean(self, n: int, mean: Tensor) -> "Moments":
        """The part that two means add to the scatter, once both scatters are in it."""
        shift, total = mean - self.mean, self.n + n
        self.scatter.addr_(shift, shift, alpha=self.n * n / total)
        self.mean += shift * (n / total)
        self.n = total
        return self

    @property
    def covariance(self) -> Tensor:
        """(D, D), divisor N - 1."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.n}")
        return self.scatter / (self.n - 1)


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)); at least 0.

    Computed on the CPU, so that a number does not depend on where the features were.

    Raises:
        ValueError: statistics that are not finite, or do not fit each other.
    """
    a, b = on_cpu(a), on_cpu(b)
    check_dimensions(len(a.mean), len(b.mean))
    shift = (a.mean - b.mean).square().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return max((shift + traces).item() - 2 * trace_of_root(a.covariance, b.covariance), 0.0)


def on_cpu(statistics: Moments | Gaussian) -> Gaussian:
    """In float64.

    Raises:
        ValueError: NaN or infinity, or a covariance that does not fit the mean.
    """
    mean, covariance = (x.detach().cpu().double() for x in (statistics.mean, statistics.covariance))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"a mean of shape {tuple(mean.shape)} and a covariance of shape "
            f"{tuple(covariance.shape)} do not belong together"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("the mean or the covariance holds NaN or infinity")
    return Gaussian(mean, covariance)


def trace_of_root(a: Tensor, b: Tensor) -> float:
    """tr((A B)^(1/2)) of two covariances (D, D), float64.

    With R R' = A, it is the sum of the square roots of the eigenvalues of R' B R. Eigenvalues at
    rounding level are left out in both steps: their roots would be far above rounding, and fewer
    samples than dimensions make many of them. There scipy's sqrtm is off by 1e-7 of the distance,
    and this by up to 1e-6 where the spectrum falls steeply.
    """
    root = root_of(a)
    values = torch.linalg.eigvalsh(root.T @ b @ root)
    return values[above_rounding(values, len(a))].sqrt().sum().item()


def root_of(a: Tensor) -> Tensor:
    """R (D, rank) with R R' = A, semi-definite: by Cholesky if A is clearly of full rank, which
    takes a tenth of the time, else from the eigenvectors."""
    factor, failed = torch.linalg.cholesky_ex(a)
    if not failed and above_rounding(factor.diagonal().square(), len(a)).all():
        return factor
    values, vectors = torch.linalg.eigh(a)
    kept = above_rounding(values, len(a))
    return vectors[:, kept] * values[kept].sqrt()


def above_rounding(values: Tensor, d: int) -> Tensor:
    """Which eigenvalues of a semi-definite (d, d), or pivots, are over d eps max: truly not 0."""
    largest = max(values.tolist(), default=0.0)
    return values > d * torch.finfo(values.dtype).eps * largest
