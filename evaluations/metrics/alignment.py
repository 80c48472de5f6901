"""How alike two representations of the same images are: CKA, debiased CKA, CKNNA."""

import torch
import torch.nn.functional as F
from torch import Tensor

AT_LEAST = 4  # images; below, the unbiased estimator is not defined


def centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of (N, D) and (N, E) (arXiv 1905.00414), biased.

    From the D x E products: the N x N kernels are never made. Independent features of more
    dimensions than images do not give 0 but tens of percent: read `debiased_cka` beside it.
    """
    x, y = centred(x), centred(y)
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return ((x.T @ y).square().sum() / scale).item() if scale else 0.0


def debiased_cka(x: Tensor, y: Tensor) -> float:
    """The same of the unbiased HSIC (Song et al. 2012): about 0 for independent features.

    Raises:
        ValueError: fewer than 4 images.
    """
    x, y = centred(x), centred(y)
    scale = unbiased_hsic(x, x) * unbiased_hsic(y, y)
    return (unbiased_hsic(x, y) / scale.sqrt()).item() if scale > 0 else 0.0


def unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Of linear kernels with zero diagonals, from (N, D) and (N, E), O(N D E)."""
    n = enough(x)
    diagonals = [one.square().sum(1) for one in (x, y)]
    rows = [one @ one.sum(0) - d for one, d in zip((x, y), diagonals, strict=True)]
    trace = (x.T @ y).square().sum() - diagonals[0] @ diagonals[1]
    return hsic_of(n, trace, *rows)


def enough(x: Tensor) -> int:
    if len(x) < AT_LEAST:
        raise ValueError(f"{len(x)} images are too few for an unbiased estimate: give {AT_LEAST}")
    return len(x)


def hsic_of(n: int, trace: Tensor, k_columns: Tensor, l_rows: Tensor) -> Tensor:
    """From tr(K L) and the sums of K's columns and of L's rows (N,), their diagonals being 0."""
    both = k_columns.sum() * l_rows.sum() / ((n - 1) * (n - 2))
    return (trace + both - 2 / (n - 2) * (k_columns @ l_rows)) / (n * (n - 3))


def cknna(x: Tensor, y: Tensor, k: int = 10) -> float:
    """CKA over pairs of images that are among the k nearest in both (arXiv 2405.07987), of
    (N, D) and (N, E), L2-normalized.

    Raises:
        ValueError: fewer than 4 images.
    """
    n = enough(x)
    sides = (F.normalize(one.double(), dim=1) for one in (x, y))
    kernels = [(side @ side.T).fill_diagonal_(0) for side in sides]
    near = [nearest(kernel, min(k, n - 1)) for kernel in kernels]

    def masked(a: int, b: int) -> Tensor:
        mask = near[a] & near[b]
        first, second = kernels[a] * mask, kernels[b] * mask
        # Neighbours are not mutual: the kernels are no longer symmetric.
        return hsic_of(n, (first * second.T).sum(), first.sum(0), second.sum(1))

    scale = masked(0, 0) * masked(1, 1)
    return (masked(0, 1) / scale.sqrt()).item() if scale > 0 else 0.0


def nearest(kernel: Tensor, k: int) -> Tensor:
    """bool (N, N): row i has True at the k images most alike i, itself left out."""
    others = kernel.clone().fill_diagonal_(-torch.inf)
    return torch.zeros_like(kernel, dtype=torch.bool).scatter_(1, others.topk(k, 1).indices, True)
