"""T2M's protocol: retrieval among 32, distances of embeddings, and means over replications."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from domains.humanml3d import BATCH
from evaluations.metrics import Moments, frechet_distance
from runtime.random import generator

from .batches import Batch
from .evaluator import Evaluator

TOP = 3  # R-precision is given for the first one, two and three
PAIRS = 300  # of the diversity


class Embedded(NamedTuple):
    """Of N motions, a multiple of 32, in batches of 32."""

    texts: Tensor  # float32 (N, D)
    motions: Tensor  # float32 (N, D)

    def replications(self, each: int) -> list["Embedded"]:
        """Parts of `each` in order."""
        parts = zip(self.texts.split(each), self.motions.split(each), strict=True)
        return [Embedded(*part) for part in parts]


def embed(evaluator: Evaluator, batches: Iterable[Batch], bar: tqdm | None = None) -> Embedded:
    texts, motions = [], []
    for batch in batches:
        texts.append(evaluator.read(batch.captions))
        motions.append(evaluator.see(batch.motions, batch.lengths))
        if bar is not None:
            bar.update(len(batch.lengths))
    return Embedded(torch.cat(texts), torch.cat(motions))


def scores(seen: Embedded, real: Tensor, distance: str, *key: int | str) -> dict[str, float]:
    """Of one replication.

    Args:
        real: embeddings of the test split's motions (M, D).
        distance: the name of the Frechet distance.
        key: the pairs of the diversity are a function of it.
    """
    precision = r_precision(seen.texts, seen.motions)
    return {
        **{f"r_precision_{k}": precision[k - 1].item() for k in range(1, TOP + 1)},
        distance: frechet_distance(Moments.of(seen.motions), Moments.of(real)),
        "matching_score": matching_score(seen.texts, seen.motions),
        "diversity": diversity(seen.motions, *key),
    }


def r_precision(texts: Tensor, motions: Tensor) -> Tensor:
    """How often a caption's motion is the nearest, among the nearest two and three of its batch:
    float64 (3,)."""
    texts, motions = (x.double().unflatten(0, (-1, BATCH)) for x in (texts, motions))
    distances = torch.cdist(texts, motions, compute_mode="donot_use_mm_for_euclid_dist")
    # Stable: where all distances are equal, the true motion is as likely anywhere.
    nearest = distances.argsort(dim=-1, stable=True)[..., :TOP]
    hits = nearest == torch.arange(BATCH)[:, None]
    return hits.double().cumsum(-1).mean((0, 1))


def matching_score(texts: Tensor, motions: Tensor) -> float:
    """The mean distance of a caption from its motion."""
    return (texts.double() - motions.double()).norm(dim=1).mean().item()


def diversity(motions: Tensor, *key: int | str) -> float:
    """The mean distance of 300 random pairs, fewer of fewer motions."""
    random = generator("cpu", *key)
    one, other = (
        motions[torch.randperm(len(motions), generator=random)[:PAIRS]].double() for _ in range(2)
    )
    return (one - other).norm(dim=1).mean().item()


class Mean(NamedTuple):
    """Over n replications, with the reach of its 95 % interval to both sides as the field reports
    it: 1.96 standard deviations (divisor n) / sqrt(n). One replication has none."""

    mean: float
    reach: float | None
    n: int


def mean_of(values: Sequence[float]) -> Mean:
    n = len(values)
    return Mean(fmean(values), 1.96 * pstdev(values) / math.sqrt(n) if n > 1 else None, n)
