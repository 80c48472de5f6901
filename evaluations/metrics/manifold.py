"""Precision and recall of samples by nearest neighbors, as ADM's evaluator defines them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.precision import plain_float32

from .inputs import check_pair


class PrecisionRecall(NamedTuple):
    precision: float  # share of samples inside the manifold of the reference
    recall: float  # share of the reference inside the manifold of the samples


Distances = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def precision_recall(
    reference: Tensor, samples: Tensor, *, k: int = 3, half: bool = False, rows: int = 10_000
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019) with the arithmetic of ADM.

    A manifold is the union of balls around all its points, each as large as the distance to the
    k-th neighbor: the (k+1)-th smallest entry of the row, as a point is its own nearest one. Points
    on a sphere are inside. All distances are squared, computed on the features' device in blocks
    of rows x rows, a few of which are the memory needed.

    Args:
        reference, samples: (N, D) and (M, D), on one device.
        half: ADM's float16. Published numbers have it, and come out 0.001 (precision) and 0.0025
            (recall) higher than in float32. Use it for Inception features: where squared norms
            exceed 32752, products may overflow and ADM takes such pairs for equal points.
        rows: per block. In half precision it is part of the definition, as blocks that overflow
            are done again in float32; ADM has 10,000.

    Raises:
        ValueError: NaN or infinity, fewer than k + 1 rows, or differing dimensions.
    """
    assert k >= 1 and rows >= 1
    check_pair(reference, samples, least=k + 1)
    reference, samples = reference.float(), samples.float()
    distances = half_distances if half else squared_distances
    with plain_float32(reference.device):
        reference_radii = radii(reference, k, distances, rows)
        sample_radii = radii(samples, k, distances, rows)
        precise = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
        recalled = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
        for i in range(0, len(reference), rows):
            some = slice(i, i + rows)
            for j in range(0, len(samples), rows):
                others = slice(j, j + rows)
                block = distances(reference[some], samples[others])
                precise[others] |= (block <= reference_radii[some, None]).any(0)
                recalled[some] |= (block <= sample_radii[others]).any(1)
    return PrecisionRecall(precise.double().mean().item(), recalled.double().mean().item())


def radii(features: Tensor, k: int, distances: Distances, rows: int) -> Tensor:
    """Squared distance of each of features (N, D) to its k-th neighbor: (N,)."""
    found = []
    for some in features.split(rows):
        nearest = [
            distances(some, others).topk(min(k + 1, len(others)), largest=False).values
            for others in features.split(rows)
        ]
        found.append(torch.cat(nearest, 1).topk(k + 1, largest=False).values[:, k])
    return torch.cat(found)


def squared_distances(u: Tensor, v: Tensor) -> Tensor:
    """max(|u|^2 - 2 u v + |v|^2, 0): (n, D), (m, D) -> (n, m), every step in their type."""
    block = product(u, v).mul_(-2)
    block += u.square().sum(1)[:, None]
    block += v.square().sum(1)
    return block.clamp_(min=0)


def half_distances(u: Tensor, v: Tensor) -> Tensor:
    """The same with float16 in every step, of float32 features; float32 if an entry overflows."""
    block = squared_distances(u.half(), v.half())
    return block.float() if block.isfinite().all() else squared_distances(u, v)


def product(u: Tensor, v: Tensor) -> Tensor:
    """u v'. CPUs multiply float16 slowly; GPUs sum its products in float32 and round, as here."""
    if u.dtype == torch.float16 and u.device.type == "cpu":
        return (u.float() @ v.float().T).half()
    return u @ v.T
