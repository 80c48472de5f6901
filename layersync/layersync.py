"""LayerSync: pull a shallow block's features towards a deeper block's (arXiv 2510.12581, Eq. 2)."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from .regulariser import Context, Regulariser
from .schedules import Schedule, constant
from .similarity import Similarity, cosine
from .telemetry import statistics

Pair = tuple[int, int]
ALWAYS = (0.0, 1.0)  # t from noise to data
TEACHERS = ("own", "ema", "other_image", "random")
OUTSIDE = ("ema", "random")  # these are other networks, whose blocks the loop hands in


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
        teacher: whose features the target block's are. "own": the model's of the same image;
            "ema": the EMA model's, from `context.teacher` (an ablation; a forward pass more);
            negative controls are "other_image", those of the previous image in the batch, and
            "random", for which the loop hands in a frozen, randomly initialized model instead.
        times: (low, high), an image whose t lies outside counts as 0 (an ablation); t is 0 at
            noise, 1 at data. A similarity that compares images with each other, `centred`, sees
            those inside alone.

    Raises:
        ValueError: no pair, what is no pair of whole numbers, a pair whose student is not shallower
            than its teacher, an unknown teacher, times that are no part of 0 to 1, or a weight that
            is negative or not finite.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        weight: float = 0.2,
        *,
        schedule: Schedule = constant,
        similarity: Similarity = cosine,
        stop_gradient: bool = True,
        reverse: bool = False,
        teacher: str = "own",
        times: tuple[float, float] = ALWAYS,
    ) -> None:
        super().__init__(weight, schedule)
        try:
            self.pairs = tuple((whole(student), whole(teacher)) for student, teacher in pairs)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"LayerSync pairs {pairs!r}: give a list of (student, teacher) block numbers, e.g. "
                "[(8, 16)]"
            ) from error
        if not self.pairs:
            raise ValueError("LayerSync needs at least one (student, teacher) pair, e.g. (8, 16)")
        for shallow, deep in self.pairs:
            if not 1 <= shallow < deep:
                raise ValueError(
                    f"LayerSync pair {shallow}:{deep}: the teacher must be deeper than the "
                    "student, and blocks are counted from 1"
                )
        if teacher not in TEACHERS:
            raise ValueError(f"unknown teacher {teacher!r}: choose from {', '.join(TEACHERS)}")
        try:
            low, high = self.times = tuple(map(float, times))
        except (TypeError, ValueError):
            low = high = math.nan
        if not 0 <= low < high <= 1:
            raise ValueError(f"LayerSync times {times}: give (low, high), 0 <= low < high <= 1")
        self.may_vanish = self.times != ALWAYS  # of a batch without an image inside
        # (the block that moves, the block that it is drawn towards)
        self.directed = tuple(pair[::-1] if reverse else pair for pair in self.pairs)
        moving, targets = ({numbers[i] for numbers in self.directed} for i in (0, 1))
        outside = teacher in OUTSIDE
        self.blocks = tuple(sorted(moving if outside else moving | targets))
        self.teacher_blocks = tuple(sorted(targets)) if outside else ()
        self.similarity = similarity
        self.stop_gradient = stop_gradient
        self.teacher = teacher

    def forward(
        self,
        blocks: Mapping[int, Tensor],
        mask: Tensor | None = None,
        outside: Mapping[int, Tensor] | None = None,
        t: Tensor | None = None,
    ) -> Tensor:
        """Loss of one forward pass.

        Args:
            blocks: {number: (B, N, D)}, from `model(..., return_blocks=sync.blocks).blocks` or
                from `record_blocks`.
            mask: (B, N), true where a token counts; None counts all.
            outside: {number: (B, N, D)}, `teacher_blocks` of the EMA model or the random one.
            t: (B,), which `times` needs to know, from 0 at noise to 1 at data: 1 - sigma of a
                rectified flow whose sigma is 1 at noise.

        Returns:
            A float32 scalar; -1 is full agreement under the cosine.

        Raises:
            ValueError: a block of a pair, or t, is missing or of another shape; features of a
                pair that differ in shape; another image's features for one image.
        """
        missing = [number for number in self.blocks if number not in blocks]
        if missing:
            raise ValueError(
                f"LayerSync was given no features for block {missing[0]}: pass "
                "return_blocks=sync.blocks, or run the model inside record_blocks (a model "
                "compiled as a whole ignores hooks: compile it block by block; so does one that "
                "calls block.forward: let it call the block)"
            )
        if not set(self.teacher_blocks) <= set(outside or ()):
            raise ValueError(
                f"LayerSync was given no features of the {self.teacher} teacher's blocks "
                f"{self.teacher_blocks}: run that model with return_blocks of them"
            )
        source = outside if self.teacher_blocks else blocks
        similarities = []
        for moving, target in self.directed:
            check_alike(blocks[moving], source[target], moving, target)
            target = source[target].detach() if self.stop_gradient else source[target]
            counted = mask
            if self.teacher == "other_image":
                target, counted = previous_image(target, mask)
            if self.times != ALWAYS:
                counted = within(self.times, t, counted, target)
            similarities.append(self.similarity(blocks[moving], target, counted))
        return -torch.stack(similarities).mean()

    def penalty(self, context: Context) -> Tensor:
        return self(context.blocks, context.token_mask, context.teacher, context.t)

    def telemetry(self, context: Context) -> dict[str, Tensor]:
        """`statistics` of every pair, by name and pair; of images at all times."""
        source = context.teacher if self.teacher_blocks else context.blocks
        found = {}
        for moving, target in self.directed:
            features, counted = source[target], context.token_mask
            if self.teacher == "other_image":
                features, counted = previous_image(features, counted)
            for name, value in statistics(context.blocks[moving], features, counted).items():
                found[f"{name} {moving}:{target}"] = value
        return found

    def extra_repr(self) -> str:
        pairs = ", ".join(f"{student}:{teacher}" for student, teacher in self.pairs)
        teacher = "" if self.teacher == "own" else f", teacher={self.teacher}"
        times = "" if self.times == ALWAYS else f", times={self.times}"
        return f"pairs={pairs}, weight={self.peak_weight}{teacher}{times}"


def whole(number: SupportsIndex) -> int:
    """A block's number: int() would cut 2.9, and take True for block 1.

    Raises:
        TypeError: it is no whole number.
    """
    if isinstance(number, bool):
        raise TypeError(f"{number} is no block number")
    return operator.index(number)


def check_alike(student: Tensor, teacher: Tensor, moving: int, target: int) -> None:
    """Shapes that differ would be broadcast to each other, and give a loss all the same.

    Raises:
        ValueError: features of a pair that are not (B, N, D) both.
    """
    if student.ndim != 3 or student.shape != teacher.shape:
        raise ValueError(
            f"LayerSync pair {moving}:{target}: block {moving} is {tuple(student.shape)} and block "
            f"{target} {tuple(teacher.shape)}: choose blocks whose features are (batch, tokens, "
            "width) of one shape"
        )


def within(
    times: tuple[float, float], t: Tensor | None, mask: Tensor | None, features: Tensor
) -> Tensor:
    """The tokens (B, N) that count, of images whose t lies within the times alone."""
    if t is None or t.shape != features.shape[:1]:
        given = "none" if t is None else tuple(t.shape)
        raise ValueError(
            f"LayerSync of the times {times} needs t of every image, ({len(features)},): "
            f"got {given}"
        )
    low, high = times
    inside = ((t >= low) & (t <= high)).unsqueeze(1).expand(features.shape[:2])
    if mask is None:
        return inside
    if mask.shape != inside.shape:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the tokens {tuple(inside.shape)}")
    return mask * inside


def previous_image(target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(B, N, D) rolled by one along the batch, and the tokens (B, N) that count in both images."""
    if len(target) < 2:
        raise ValueError("teacher='other_image' needs at least 2 images in the batch")
    return target.roll(1, 0), None if mask is None else mask * mask.roll(1, 0)
