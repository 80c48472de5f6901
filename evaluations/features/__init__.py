"""What the blocks of a network hold: of our checkpoints, of encoders, of any torch model."""

from .denoiser import CLEAN, Denoiser, View
from .encoder import Encoder
from .modules import Modules
from .pooled import Pooled, Reading, pooled
from .study import Study, StudyFlags, SubjectFlags
from .subject import Subject

__all__ = [
    "CLEAN", "Denoiser", "Encoder", "Modules", "Pooled", "Reading", "Study", "StudyFlags",
    "Subject", "SubjectFlags", "View", "pooled",
]  # fmt: skip
