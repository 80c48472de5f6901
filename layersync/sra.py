"""Self-alignment: SRA (arXiv 2505.02831), towards a deeper block of the EMA model that sees less
noise, and SRA 2 (arXiv 2601.17830), towards the clean data."""

import math
from collections.abc import Sequence

from torch import Tensor

from .projector import mlp, project
from .regulariser import Context, Regulariser, check_block
from .schedules import Schedule, constant
from .similarity import cosine, smooth_l1
from .telemetry import statistics

TIME_OFFSET = 0.2  # the teacher is at most this much nearer to the data


def cosine_over_tokens(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """The public code's, for each channel along the tokens: it left `dim` at its default of 1.

    Raises:
        ValueError: a token mask, which the public code does not know.
    """
    if mask is not None:
        raise ValueError("the cosine along the tokens is not defined for images of unequal length")
    return cosine(student.mT, teacher.mT)


# (distance, axis of the cosine) -> a similarity, and its value for equal features
DISTANCES = {
    ("smooth_l1", "channels"): (smooth_l1, 0.0),
    ("cosine", "channels"): (cosine, 1.0),
    ("cosine", "tokens"): (cosine_over_tokens, 1.0),
}


class SRA(Regulariser):
    """Distance from the student's block, seen through a trained head, to the EMA model's block.

    The teacher sees the same data, noise and labels at t' = min(1, t + 0.2 u). The paper's preset
    is smooth-L1 with weight 0.2 and `schedules.sra_decay`; its authors now advise the cosine with
    weight 0.5. The head is used in training only.

    Args:
        student, teacher: block numbers, counted from 1, student < teacher (8 and 20 on SiT-XL).
        width: D of the model.
        weight: factor of the term, at the schedule's peak.
        distance: "smooth_l1", beta 0.05, on raw features, or "cosine", 1 - cos.
        cos_axis: "channels", or "tokens" for the public code's cosine (a fault of it).
        schedule: factor on the weight as a function of the step.

    Raises:
        ValueError: a teacher that is not deeper than the student; an unknown distance.
    """

    def __init__(
        self,
        student: int,
        teacher: int,
        width: int,
        weight: float = 0.2,
        *,
        distance: str = "smooth_l1",
        cos_axis: str = "channels",
        schedule: Schedule = constant,
    ) -> None:
        super().__init__(weight, schedule)
        if not 1 <= student < teacher:
            raise ValueError(
                f"SRA {student}:{teacher}: the teacher must be deeper than the student, and blocks "
                "are counted from 1"
            )
        if (distance, cos_axis) not in DISTANCES:
            known = ", ".join(f"{name} along {axis}" for name, axis in DISTANCES)
            raise ValueError(f"no SRA distance {distance} along {cos_axis}: choose from {known}")
        self.blocks, self.teacher_blocks = (student,), (teacher,)
        self.head = mlp(width, 2 * width, width)
        self.similarity, self.best = DISTANCES[distance, cos_axis]

    def teacher_time(self, t: Tensor, uniform: Tensor) -> Tensor:
        """Nearer to the data than t (B,), by up to 0.2 and never beyond it."""
        return (t + TIME_OFFSET * uniform).clamp(max=1)

    def penalty(self, context: Context) -> Tensor:
        """A float32 scalar; 0 is full agreement.

        Raises:
            ValueError: the EMA model's block is missing.
        """
        (student,), (teacher,) = self.blocks, self.teacher_blocks
        if teacher not in context.teacher:
            raise ValueError(f"SRA was given no features of the EMA model's block {teacher}")
        predicted = project(self.head, context.blocks[student])
        target = context.teacher[teacher].detach()
        return self.best - self.similarity(predicted, target, context.token_mask)

    def telemetry(self, context: Context) -> dict[str, Tensor]:
        """`statistics` of the pair, before the head."""
        (student,), (teacher,) = self.blocks, self.teacher_blocks
        seen = context.blocks[student], context.teacher[teacher]
        found = statistics(*seen, context.token_mask)
        return {f"{name} {student}:{teacher}": value for name, value in found.items()}

    def extra_repr(self) -> str:
        return f"pair={self.blocks[0]}:{self.teacher_blocks[0]}, weight={self.peak_weight}"


def patchify(x: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, C, *axes) -> (B, N, prod(patch) * C): tokens in row-major order and, in a token, the
    place in the patch before the channel, as the model's `unpatchify` reads them.

    Raises:
        ValueError: a patch of another number of axes, or one that does not divide them.
    """
    axes, n = x.shape[2:], len(patch)
    if len(axes) != n or any(axis % p for axis, p in zip(axes, patch, strict=True)):
        raise ValueError(f"patch {tuple(patch)} does not divide the data's axes {tuple(axes)}")
    split = [size for axis, p in zip(axes, patch, strict=True) for size in (axis // p, p)]
    x = x.reshape(*x.shape[:2], *split)
    grid, within = range(2, 2 * n + 2, 2), range(3, 2 * n + 2, 2)
    return x.permute(0, *grid, *within, 1).flatten(1 + n).flatten(1, n)


class SRA2(Regulariser):
    """Smooth-L1 distance, beta 0.05, from a block seen through a trained MLP to the clean data
    (the latent, with a VAE) cut into the model's patches. There is no second forward pass.

    Args:
        block: counted from 1.
        width: D of the model.
        patch: the model's, along each axis.
        channels: C of the data.
        weight: factor of the term, at the schedule's peak.
        hidden: width of the head.
        layers: linear layers of the head; a third party's port has 5.
        schedule: factor on the weight as a function of the step.

    Raises:
        ValueError: a block below 1, or a head without layers.
    """

    def __init__(
        self,
        block: int,
        width: int,
        patch: Sequence[int],
        channels: int,
        weight: float = 1.0,
        *,
        hidden: int = 2048,
        layers: int = 3,
        schedule: Schedule = constant,
    ) -> None:
        super().__init__(weight, schedule)
        check_block(block)
        if layers < 1:
            raise ValueError(f"a head of {layers} layers does not exist: give at least 1")
        self.blocks, self.patch = (block,), tuple(patch)
        self.head = mlp(width, *[hidden] * (layers - 1), math.prod(self.patch) * channels)

    def penalty(self, context: Context) -> Tensor:
        """A float32 scalar; 0 where the block tells the clean data.

        Raises:
            ValueError: a patch that does not divide the data, or not into the student's tokens.
        """
        predicted = project(self.head, context.blocks[self.blocks[0]])
        target = patchify(context.x, self.patch)
        if predicted.shape != target.shape:
            raise ValueError(
                f"the data cut into patches {self.patch} is {tuple(target.shape)}, the head's "
                f"output {tuple(predicted.shape)}: give the model's patch and the data's channels"
            )
        return -smooth_l1(predicted, target.detach(), context.token_mask)

    def extra_repr(self) -> str:
        return f"block={self.blocks[0]}, weight={self.peak_weight}"
