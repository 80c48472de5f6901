"""How much features tell: linear probes, nearest neighbours, ridge regression."""

from .curves import Curves
from .linear import Fit, StackedHeads, train_heads
from .neighbors import knn_accuracy
from .ridge import ridge_accuracy

__all__ = ["Curves", "Fit", "StackedHeads", "knn_accuracy", "ridge_accuracy", "train_heads"]
