"""How alike two representations of the same images are: CKA, debiased CKA, CKNNA.

Each is a class: what depends on one side is worked out once, `CKA(x).to(CKA(y))` compares.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

AT_LEAST = 4  # images; below, the unbiased estimator is not defined


class Likeness(ABC):
    """One side of a comparison, from features (N, D)."""

    def __init__(self, x: Tensor) -> None:
        if len(x) < AT_LEAST:
            raise ValueError(
                f"{len(x)} images are too few for an unbiased estimate: give {AT_LEAST}"
            )

    @abstractmethod
    def product(self, other: "Likeness") -> Tensor:
        """0-dim: what is divided by both sides' own."""

    def to(self, other: "Likeness") -> float:
        """1 for what is equal up to rotation and scale; 0 where a side says nothing."""
        scale = self.own * other.own
        return (self.product(other) / scale.sqrt()).item() if scale > 0 else 0.0

    @property
    def own(self) -> Tensor:
        if not hasattr(self, "_own"):
            self._own = self.product(self)
        return self._own


class CKA(Likeness):
    """Linear centred kernel alignment (arXiv 1905.00414), biased.

    From the D x E products: the N x N kernels are never made. Independent features of more
    dimensions than images do not give 0 but tens of percent: read `DebiasedCKA` beside it.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.x = centred(x)

    def product(self, other: "CKA") -> Tensor:
        return (self.x.T @ other.x).square().sum()


class DebiasedCKA(Likeness):
    """The same of the unbiased HSIC (Song et al. 2012): about 0 for independent features, and below
    as often as above."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.x = centred(x)
        self.diagonal = self.x.square().sum(1)
        self.rows = self.x @ self.x.sum(0) - self.diagonal  # of the kernel without its diagonal

    def product(self, other: "DebiasedCKA") -> Tensor:
        trace = (self.x.T @ other.x).square().sum() - self.diagonal @ other.diagonal
        return hsic(len(self.x), trace, self.rows, other.rows)


class CKNNA(Likeness):
    """CKA over pairs of images that are among the k nearest in both (arXiv 2405.07987), of features
    brought to length 1."""

    def __init__(self, x: Tensor, k: int = 10) -> None:
        super().__init__(x)
        x = F.normalize(x.float(), dim=1)
        self.kernel = (x @ x.T).fill_diagonal_(-torch.inf)
        nearest = self.kernel.topk(min(k, len(x) - 1), dim=1).indices
        self.near = torch.zeros_like(self.kernel, dtype=torch.bool).scatter_(1, nearest, True)
        self.kernel.fill_diagonal_(0)

    def product(self, other: "CKNNA") -> Tensor:
        # Pairs that are near in both are few, and not mutual: the kernels are not symmetric.
        row, column = (self.near & other.near).nonzero(as_tuple=True)
        n, sides = len(self.kernel), (self.kernel, other.kernel)
        k, l = (side[row, column].double() for side in sides)  # noqa: E741
        mutual = (self.near & other.near)[column, row]
        trace = (k * other.kernel[column, row] * mutual).sum()
        columns, rows = (torch.zeros(n, dtype=k.dtype, device=k.device) for _ in range(2))
        columns.index_add_(0, column, k)
        rows.index_add_(0, row, l)
        return hsic(n, trace, columns, rows)


def centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def hsic(n: int, trace: Tensor, k_columns: Tensor, l_rows: Tensor) -> Tensor:
    """From tr(K L) and the sums of K's columns and of L's rows (N,), their diagonals being 0."""
    both = k_columns.sum() * l_rows.sum() / ((n - 1) * (n - 2))
    return (trace + both - 2 / (n - 2) * (k_columns @ l_rows)) / (n * (n - 3))
