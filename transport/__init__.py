"""Paths, the training step, samplers, guidance and likelihood; knows no modality and no model.

`create_transport` and `Sampler` take SiT's arguments.
"""

from .guidance import Guidance
from .likelihood import Likelihood
from .path import DIFFUSION_FORMS, PATHS, PREDICTIONS
from .protocols import PROTOCOLS
from .samplers import LAST_STEPS, Sampler
from .solvers import ODE_METHODS, SDE_METHODS
from .training import Losses, TrainingStep
from .transport import LOSS_WEIGHTS, Transport, create_transport

__all__ = [
    "DIFFUSION_FORMS",
    "LAST_STEPS",
    "LOSS_WEIGHTS",
    "ODE_METHODS",
    "PATHS",
    "PREDICTIONS",
    "PROTOCOLS",
    "SDE_METHODS",
    "Guidance",
    "Likelihood",
    "Losses",
    "Sampler",
    "TrainingStep",
    "Transport",
    "create_transport",
]
