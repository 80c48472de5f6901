"""What the blocks of a network hold: of our checkpoints, of encoders, of any torch model."""

from .denoiser import CLEAN, Denoiser, View
from .encoder import Encoder
from .modules import Modules
from .pooled import Pooled, pooled
from .study import Study, StudyFlags
from .subject import Subject

__all__ = [
    "CLEAN", "Denoiser", "Encoder", "Modules", "Pooled", "Study", "StudyFlags", "Subject", "View",
    "pooled",
]  # fmt: skip
