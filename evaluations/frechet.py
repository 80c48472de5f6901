"""The Frechet distance between two sets of features, in float64."""

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of features (N, D) that come in batches of any size.

    Batches are merged by their means and scatter matrices (Chan et al.), which loses no digits
    where the mean is large against the spread.
    """

    def __init__(self, dimension: int) -> None:
        self.n = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        return cls(features.shape[1]).update(features)

    def update(self, features: Tensor) -> "Moments":
        """Add features (n, D).

        Raises:
            ValueError: NaN or infinity among them.
        """
        assert features.ndim == 2 and features.shape[1] == len(self.mean)
        if not torch.isfinite(features).all():
            raise ValueError("features hold NaN or infinity")
        if not len(features):
            return self
        batch = Moments(len(self.mean))
        features = features.detach().cpu().double()
        batch.n, batch.mean = len(features), features.mean(0)
        centered = features - batch.mean
        batch.scatter = centered.T @ centered
        return self.merge(batch)

    def merge(self, other: "Moments") -> "Moments":
        """Add all that `other` has seen."""
        total = self.n + other.n
        if total:
            shift = other.mean - self.mean
            self.scatter += other.scatter + torch.outer(shift, shift) * (self.n * other.n / total)
            self.mean += shift * (other.n / total)
            self.n = total
        return self

    @property
    def covariance(self) -> Tensor:
        """(D, D), divisor N - 1."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.n}")
        return self.scatter / (self.n - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)); at least 0.

    With R R' = A, the last trace is the sum of the square roots of the eigenvalues of R' B R.
    Eigenvalues at rounding level are set to 0 in both steps: their roots would be far above
    rounding, and fewer samples than dimensions make many of them.
    """
    cov_a, cov_b = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * without_rounding(values).sqrt()
    product = without_rounding(torch.linalg.eigvalsh(root.T @ cov_b @ root))
    shift = (a.mean - b.mean).square().sum()
    distance = shift + cov_a.trace() + cov_b.trace() - 2 * product.sqrt().sum()
    return max(distance.item(), 0.0)


def without_rounding(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues of a semi-definite matrix; those below D eps max are 0."""
    threshold = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues.max()
    return torch.where(eigenvalues > threshold, eigenvalues, 0.0)
