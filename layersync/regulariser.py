"""What a regulariser of the training loss declares and what it is shown; LayerSync is one."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from .schedules import Schedule, constant


class Context(NamedTuple):
    """Everything of one training step that a regulariser may look at.

    x, noise, x_t are (B, C, *axes), t is (B,) with t = 1 at the data.
    """

    blocks: dict[int, Tensor]  # {number: (B, N, D)}, the blocks it declared
    x: Tensor
    noise: Tensor
    t: Tensor
    x_t: Tensor
    cond: dict[str, Tensor]  # after label dropout
    token_mask: Tensor | None = None  # (B, N), true where a token counts
    teacher: dict[int, Tensor] = {}  # blocks of the EMA model at `teacher_time`; no gradient
    targets: tuple[Tensor, ...] = ()  # features from elsewhere, (B, N, Z) or (B, Z) each


class Regulariser(nn.Module, ABC):
    """A term added to the velocity loss. The training loop knows no subclass by name.

    Attributes:
        blocks: numbers of the blocks that the model's forward must return.
        teacher_blocks: numbers of the blocks of the EMA model that it wants to see.
        takes_targets: whether it compares with features from elsewhere, an encoder's say.
        may_vanish: whether a gradient of nil is no fault: of a term that comes to a bound early
            on, or that some batches have nothing for.

    Parameters of a subclass (projectors) train with the model and are stored beside it, never in
    it; sampling never calls a regulariser.

    Args:
        weight: factor of the term in the total loss, at the schedule's peak.
        schedule: factor on the weight as a function of the step.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    blocks: tuple[int, ...] = ()
    teacher_blocks: tuple[int, ...] = ()
    takes_targets: bool = False
    may_vanish: bool = False

    def __init__(self, weight: float = 1.0, schedule: Schedule = constant) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"the weight of {type(self).__name__} is {weight}: give a finite number of at "
                "least 0"
            )
        self.peak_weight = float(weight)
        self.schedule = schedule

    def weight(self, step: int) -> float:
        """The factor of the term in the total loss at a step counted from 0."""
        return self.peak_weight * self.schedule(step)

    def velocity_weight(self, step: int) -> float:
        """The factor of the velocity loss."""
        return 1.0

    def teacher_time(self, t: Tensor, uniform: Tensor) -> Tensor:
        """The times (B,) at which the EMA model sees the same data with the same noise.

        Args:
            uniform: (B,), drawn for this step in [0, 1).
        """
        return t

    def telemetry(self, context: Context) -> dict[str, Tensor]:
        """0-dim tensors to log now and then, by name; of features, not of the loss."""
        return {}

    @abstractmethod
    def penalty(self, context: Context) -> Tensor:
        """The term itself: a float32 scalar."""

    def __str__(self) -> str:
        """In one line, without the layers of its heads."""
        return f"{type(self).__name__}({self.extra_repr()})"


def check_block(number: int) -> None:
    """Blocks are counted from 1.

    Raises:
        ValueError: a number below.
    """
    if number < 1:
        raise ValueError(f"block {number} does not exist: blocks are counted from 1")
