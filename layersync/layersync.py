"""LayerSync: pull a shallow block's features towards a deeper block's (arXiv 2510.12581, Eq. 2)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .regulariser import Context, Regulariser
from .schedules import Schedule, constant
from .similarity import cosine

Pair = tuple[int, int]


class LayerSync(Regulariser):
    """The LayerSync loss: minus the similarity of student and teacher tokens, mean over the pairs.

        loss = velocity_loss + sync.weight(step) * sync(blocks)

    The teacher is the deeper block and receives no gradient; there are no parameters.

    Args:
        pairs: (student, teacher) block numbers, counted from 1, student < teacher.
        weight: lambda of the paper, at the schedule's peak.
        schedule: factor on the weight as a function of the step; see `layersync.schedules`.
        similarity: (student, teacher, mask) -> scalar, larger is more alike; (B, N, D) each.
        stop_gradient: False lets the teacher move towards the student too (an ablation).
        reverse: True pulls the deep block towards the shallow one (a negative control).

    Raises:
        ValueError: no pair, or a pair whose student is not shallower than its teacher.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        weight: float = 0.2,
        *,
        schedule: Schedule = constant,
        similarity: Callable[[Tensor, Tensor, Tensor | None], Tensor] = cosine,
        stop_gradient: bool = True,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        self.pairs = tuple((int(student), int(teacher)) for student, teacher in pairs)
        if not self.pairs:
            raise ValueError("LayerSync needs at least one (student, teacher) pair, e.g. (8, 16)")
        for student, teacher in self.pairs:
            if not 1 <= student < teacher:
                raise ValueError(
                    f"LayerSync pair {student}:{teacher}: the teacher must be deeper than the "
                    "student, and blocks are counted from 1"
                )
        self.blocks = tuple(sorted({number for pair in self.pairs for number in pair}))
        self.peak_weight = float(weight)
        self.schedule = schedule
        self.similarity = similarity
        self.stop_gradient = stop_gradient
        self.reverse = reverse

    def forward(self, blocks: Mapping[int, Tensor], mask: Tensor | None = None) -> Tensor:
        """Loss of one forward pass.

        Args:
            blocks: {number: (B, N, D)}, from `model(..., return_blocks=sync.blocks).blocks` or
                from `record_blocks`.
            mask: (B, N), true where a token counts; None counts all.

        Returns:
            A float32 scalar; -1 is full agreement under the cosine.

        Raises:
            ValueError: a block of a pair is missing.
        """
        missing = [number for number in self.blocks if number not in blocks]
        if missing:
            raise ValueError(
                f"LayerSync was given no features for block {missing[0]}: pass "
                "return_blocks=sync.blocks, or run the model inside record_blocks (a model "
                "compiled as a whole ignores hooks: compile it block by block)"
            )
        similarities = []
        for student, teacher in self.pairs:
            moving, target = blocks[student], blocks[teacher]
            if self.reverse:
                moving, target = target, moving
            if self.stop_gradient:
                target = target.detach()
            similarities.append(self.similarity(moving, target, mask))
        return -torch.stack(similarities).mean()

    def weight(self, step: int) -> float:
        """The weight of the term at a training step (counted from 0)."""
        return self.peak_weight * self.schedule(step)

    def penalty(self, context: Context) -> Tensor:
        return self(context.blocks, context.token_mask)

    def extra_repr(self) -> str:
        pairs = ", ".join(f"{student}:{teacher}" for student, teacher in self.pairs)
        return f"pairs={pairs}, weight={self.peak_weight}"
