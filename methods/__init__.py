"""What --loss-type means: each method's flags made into a regulariser, and what it looks at."""

import dataclasses
from collections.abc import Callable

from domains import Domain
from models import Denoiser
from runtime.config import TrainConfig, foreign_to
from runtime.errors import InputError

from .layer_sync import layer_sync, multiple_sync, vanilla
from .method import Method, least_images
from .rivals import dispersive, external, repa, sra, sra2

__all__ = ["METHODS", "Method", "check_flags", "least_images"]

Builder = Callable[[TrainConfig, Denoiser, Domain], tuple[TrainConfig, Method]]

METHODS: dict[str, Builder] = {
    "layer_sync": layer_sync,
    "multiple_sync": multiple_sync,
    "vanilla": vanilla,
    "dispersive": dispersive,
    "repa": repa,
    "external": external,
    "sra": sra,
    "sra2": sra2,
}


def check_flags(config: TrainConfig) -> None:
    """Refuse a flag that the method does not read: its run would be another than it seems.

    Raises:
        InputError: naming the first.
    """
    for field in dataclasses.fields(TrainConfig):
        name = field.name
        if name in foreign_to(config.loss_type) and getattr(config, name) != field.default:
            raise InputError(
                f"--{name.replace('_', '-')} has no meaning for --loss-type {config.loss_type}: "
                "leave it out"
            )
