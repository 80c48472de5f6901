"""Our training step as the benchmarks run it: training.Trainer on random latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

import domains
from benchmarks.report import MeasureFlags
from runtime.config import TrainConfig
from runtime.distributed import Ranks
from runtime.entry import asked_of_user
from runtime.errors import InputError
from training import Trainer, build


@dataclass(frozen=True)
class StepFlags(MeasureFlags):
    model: str = "SiT-S/2"  # SiT-{S,B,L,XL,Ti}/{2,4,8}, on random 4x32x32 latents
    batch: int = 8  # images per step
    grad_accum: int = 1  # our micro-batches per step
    precision: Literal["fp32", "tf32", "bf16"] = "bf16"  # of ours; the public code is fp32 or tf32
    compile: Literal["auto", "on", "off"] = "on"  # ours; on a CPU this needs a C++ compiler
    attention: Literal["auto", "cudnn", "flash", "efficient", "math"] = "auto"  # kernel of ours


LEAST = {"batch": 1, "grad_accum": 1}
NEVER = 2**40  # the run does not end, nor is a log line asked for, in a measured step


def config_of(flags: StepFlags, **asked: Any) -> TrainConfig:
    """The flags of train.py for synthetic latents; `asked` are more of them.

    Raises:
        InputError: micro-batches that do not divide the batch.
    """
    if flags.batch % flags.grad_accum:
        raise InputError(
            f"--batch {flags.batch} is not divisible by --grad-accum {flags.grad_accum}"
        )
    given = dict(
        dataset_name="synthetic", model=flags.model, global_batch_size=flags.batch,
        grad_accum=flags.grad_accum, precision=flags.precision, compile=flags.compile,
        attention=flags.attention, max_steps=NEVER, log_every=NEVER,
    )  # fmt: skip
    return TrainConfig(**given | asked)


def trainer_of(flags: StepFlags, ranks: Ranks, **asked: Any) -> Trainer:
    """A trainer, `asked` as in `config_of`.

    Raises:
        InputError: flags that do not go together.
    """
    config = config_of(flags, **asked)
    with asked_of_user():
        return Trainer(*build(config, ranks.device), ranks)


def batch_of(domain: domains.Domain, size: int, device: torch.device) -> domains.Batch:
    """The first samples of a domain's data, on a device."""
    draws = domains.Draws.plain(range(size))
    return domain.train_set().__getitems__(draws).checked().to_device(device)


def step_of(trainer: Trainer) -> Callable[[], Any]:
    """The trainer's step, on one batch again and again."""
    config = trainer.config
    size = config.global_batch_size // config.grad_accum
    batch = batch_of(trainer.domain, size, trainer.ranks.device)
    return lambda: trainer.step(iter([batch] * config.grad_accum))
