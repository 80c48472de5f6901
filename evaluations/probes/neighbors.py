"""k nearest neighbours: what features tell without anything trained."""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07  # of the votes, as in DINO (arXiv 2104.14294)
AT_ONCE = 1024


def knn_accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, k: int = 20) -> float:
    """The share of test features (M, D) whose k nearest of (N, D) by cosine vote for their class,
    a vote weighing exp(cosine / 0.07)."""
    k, classes = min(k, len(x)), int(max(y.max(), y_test.max())) + 1
    x, x_test = F.normalize(x, dim=1), F.normalize(x_test, dim=1)
    right = 0
    for some, answer in zip(x_test.split(AT_ONCE), y_test.split(AT_ONCE), strict=True):
        near = (some @ x.T).topk(k, dim=1)
        votes = torch.zeros(len(some), classes, device=x.device)
        votes.scatter_add_(1, y[near.indices], (near.values / TEMPERATURE).exp())
        right += int((votes.argmax(1) == answer).sum())
    return right / len(y_test)
