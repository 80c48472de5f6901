"""What the training loop is handed of a method, and what all of them share."""

import ast
import dataclasses
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from domains import Batch
from layersync import SCHEDULES, Regulariser
from layersync.schedules import Schedule
from runtime.config import TrainConfig
from runtime.errors import InputError


class Targets(Protocol):
    """Features from elsewhere, of the images of a batch."""

    identity: list[str]  # who made them; a run goes on with the same

    def attach(self, batch: Batch) -> Batch:
        """The batch with what is read from files; called in the thread that reads ahead."""

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """(B, N, Z) or (B, Z) each, float32, on the device of the batch, without gradients."""

    def example(self, size: int, device: torch.device) -> tuple[Tensor, ...]:
        """Zeros of their shapes."""

    def to(self, device: torch.device) -> "Targets": ...


class Method(NamedTuple):
    """A regulariser (None: plain SiT) and what it is shown besides this step."""

    regulariser: Regulariser | None = None
    targets: Targets | None = None
    teacher: nn.Module | None = None  # in the EMA model's place
    note: str | None = None  # how the log's `reg` is to be read, or what is not as published


def least_images(config: TrainConfig, ranks: int) -> int:
    """Of a rank's micro-batch: some terms compare its images, and some with other ranks' too."""
    of_own = config.teacher == "other_image" or config.similarity == "centred"
    of_all = config.similarity == "centred_all"
    if config.loss_type == "dispersive":
        of_own, of_all = not config.disp_gather, config.disp_gather
    return 2 if of_own or (of_all and ranks == 1) else 1


def settled(config: TrainConfig, **published: float | int) -> TrainConfig:
    """The flags, with published values where the user gave none."""
    return dataclasses.replace(
        config,
        **{name: value for name, value in published.items() if getattr(config, name) is None},
    )


def literal(asked: str) -> Any:
    """A list that a flag holds.

    Raises:
        ValueError: it is no literal of Python.
    """
    try:
        return ast.literal_eval(asked)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


def schedule_of(config: TrainConfig) -> Schedule:
    """--reg-schedule from --reg-start on, nothing before.

    Raises:
        InputError: a schedule without its length, or a length without a schedule.
    """
    if config.reg_schedule == "constant" and config.reg_schedule_steps:
        raise InputError("--reg-schedule-steps: --reg-schedule constant has no length")
    if config.reg_schedule != "constant" and config.reg_schedule_steps < 1:
        raise InputError(f"--reg-schedule {config.reg_schedule} needs --reg-schedule-steps N")
    factor, start = SCHEDULES[config.reg_schedule](config.reg_schedule_steps), config.reg_start
    return lambda step: factor(step - start) if step >= start else 0.0
