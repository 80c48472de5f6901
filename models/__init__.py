"""Networks: x_t, t, condition -> Output(pred, blocks). `from models import SiT_models`."""

from .checkpoints import adapt, architecture_of, check_state, load
from .flops import train_flops
from .sit import SIZES, Output, SiT, SiT_models, architecture

__all__ = [
    "SIZES",
    "Output",
    "SiT",
    "SiT_models",
    "adapt",
    "architecture",
    "architecture_of",
    "check_state",
    "load",
    "train_flops",
]
