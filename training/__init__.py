"""A run of training: the parts that the flags describe, and the step that moves them."""

from .parts import build, check_batch, needs_of, with_length
from .trainer import Trainer

__all__ = ["Trainer", "build", "check_batch", "needs_of", "with_length"]
