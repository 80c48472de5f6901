"""The random numbers of a training step: a function of (seed, step, position in the batch)."""

from typing import NamedTuple

import torch
from torch import Tensor

from .config import TrainConfig
from .random import generator


class StepDraws(NamedTuple):
    """The random numbers of one step for the whole global batch."""

    noise: Tensor  # (B, C, *axes), x_0
    time: Tensor  # (B,), uniform in [0, 1)
    dropped: Tensor  # (B,), labels replaced by the null
    posterior: Tensor | None  # (B, C, *axes), of a codec that draws
    teacher: Tensor | None  # (B,), uniform in [0, 1), of a regulariser that looks at a teacher

    def at(self, positions: slice) -> "StepDraws":
        """Those of some positions of the batch."""
        return StepDraws(*(draw if draw is None else draw[positions] for draw in self))


def draws_of_step(
    config: TrainConfig, shape: tuple[int, ...], step: int, device: torch.device, *,
    posterior: bool = False, teacher: bool = False,
) -> StepDraws:  # fmt: skip
    """Every rank draws the whole global batch and uses its own positions, so that what a position
    sees does not depend on the number of ranks, and resuming needs the step alone."""
    batch = config.global_batch_size
    random = generator(device, config.global_seed, "step", step)
    kwargs = dict(generator=random, device=device)
    return StepDraws(
        noise=torch.randn(batch, *shape, **kwargs),
        time=torch.rand(batch, **kwargs),
        dropped=torch.rand(batch, **kwargs) < config.class_dropout_prob,
        posterior=torch.randn(batch, *shape, **kwargs) if posterior else None,
        teacher=torch.rand(batch, **kwargs) if teacher else None,
    )
