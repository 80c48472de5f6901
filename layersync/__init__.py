"""LayerSync (arXiv 2510.12581) for any torch model: LayerSync the loss, record_blocks the taps."""

from .layersync import LayerSync
from .pairs import admissible_pairs, check_pairs, default_pair, default_weight
from .recording import record_blocks
from .regulariser import Context, Regulariser
from .schedules import SCHEDULES, constant, cosine_decay, linear_decay, stop_at
from .similarity import cosine

__all__ = [
    "SCHEDULES",
    "Context",
    "LayerSync",
    "Regulariser",
    "admissible_pairs",
    "check_pairs",
    "constant",
    "cosine",
    "cosine_decay",
    "default_pair",
    "default_weight",
    "linear_decay",
    "record_blocks",
    "stop_at",
]
