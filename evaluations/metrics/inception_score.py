"""The Inception Score, as ADM's evaluator takes it."""

import torch
from torch import Tensor

from .inputs import check_features, in_float64

SUM_TOLERANCE = 1e-3  # of a row of probabilities that were computed in float16


def inception_score(probabilities: Tensor, split: int = 5000) -> float:
    """Mean over splits of exp(mean_i KL(p_i || mean p)): from 1 to K.

    As in ADM's evaluator (guided-diffusion, evaluations/evaluator.py) the splits are consecutive
    rows in the order of the file; the last one may be shorter and counts like the others. A file
    sorted by class therefore scores far too low.

    Args:
        probabilities: (N, K), softmax of logits without bias where the extractor is Inception.
        split: rows per split.

    Raises:
        ValueError: no rows, NaN, or rows that are not probabilities.
    """
    check_features(probabilities, "probabilities", least=1)
    assert split >= 1
    scores = []
    for part in probabilities.split(split):
        p = in_float64(part)
        if (p < 0).any() or ((p.sum(1) - 1).abs() > SUM_TOLERANCE).any():
            raise ValueError("rows of probabilities must be at least 0 and sum to 1: apply softmax")
        # The mean over i of p_i log(mean p) is (mean p) log(mean p). entr(p) = -p log p, 0 at 0.
        entropies = torch.special.entr(p).sum(1)
        scores.append((torch.special.entr(p.mean(0)).sum() - entropies.mean()).exp())
    return torch.stack(scores).mean().item()
