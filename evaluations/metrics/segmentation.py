"""Mean intersection over union, from a confusion matrix."""

import torch
from torch import Tensor

IGNORED = 255  # pixels that count for nothing


def confusion(target: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """int64 (classes, classes): pixels of class [row] that were called [column].

    Args:
        target, predicted: classes of equal shape; target may be IGNORED.
    """
    counted = target != IGNORED
    pairs = target[counted] * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def intersection_over_union(counts: Tensor) -> Tensor:
    """float64 (classes,) of a confusion matrix; NaN for classes in neither."""
    both = counts.diagonal().double()
    return both / (counts.sum(0) + counts.sum(1) - both)


def mean_iou(counts: Tensor) -> float:
    """Over the classes that occur in target or prediction; 0 where no pixel counts."""
    found = intersection_over_union(counts)
    found = found[~found.isnan()]
    return found.mean().item() if len(found) else 0.0
