"""The metrics of images: tensors of features in, numbers out; no file, no model, no image."""

from .crossing import Pace, SpeedUp, crossing, pace, speed_up
from .frechet import Gaussian, Moments, frechet_distance, trace_of_root
from .inception_score import inception_score
from .intervals import Interval, mean_interval
from .kid import KernelDistance, kernel_distance
from .manifold import PrecisionRecall, precision_recall

__all__ = [
    "Gaussian",
    "Interval",
    "KernelDistance",
    "Moments",
    "Pace",
    "PrecisionRecall",
    "SpeedUp",
    "crossing",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "mean_interval",
    "pace",
    "precision_recall",
    "speed_up",
    "trace_of_root",
]
