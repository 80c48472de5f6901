"""What --loss-type means: each method's flags made into a regulariser, and what it looks at."""

import dataclasses
from collections.abc import Callable

from domains import Domain
from models import SiT
from runtime.config import TrainConfig
from runtime.errors import InputError

from .layer_sync import layer_sync, multiple_sync, vanilla
from .method import Method
from .rivals import dispersive, external, repa, sra, sra2

__all__ = ["METHODS", "Method", "check_flags"]

Builder = Callable[[TrainConfig, SiT, Domain], tuple[TrainConfig, Method]]

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

TERM = {"reg_weight", "reg_schedule", "reg_schedule_steps", "reg_start"}
SYNC = TERM | {"similarity", "teacher", "stop_gradient", "reverse_sync"}
# The flags of train.py's regulariser groups that each method reads.
READS: dict[str, set[str]] = {
    "layer_sync": SYNC | {"encoder_depth", "gt_encoder_depth"},
    "multiple_sync": SYNC | {"multi_blocks_match"},
    "vanilla": set(),
    "dispersive": TERM | {"encoder_depth", "disp_variant", "disp_tau", "disp_gather"},
    "repa": TERM
    | {"encoder_depth", "repa_variant", "repa_encoder", "repa_weights", "velocity_warmup"},
    "external": TERM | {"targets", "velocity_warmup"},
    "sra": TERM
    | {"encoder_depth", "gt_encoder_depth", "sra_variant", "sra_cos_axis", "sra_epoch_steps"},
    "sra2": TERM | {"encoder_depth"},
}


def check_flags(config: TrainConfig) -> None:
    """Refuse a flag that the method does not read: its run would be another than it seems.

    Raises:
        InputError: naming the first.
    """
    foreign = set().union(*READS.values()) - READS[config.loss_type]
    for field in dataclasses.fields(TrainConfig):
        name = field.name
        if name in foreign and getattr(config, name) != field.default:
            raise InputError(
                f"--{name.replace('_', '-')} has no meaning for --loss-type {config.loss_type}: "
                "leave it out"
            )
