"""Alignment with features from elsewhere: REPA (arXiv 2410.06940), iREPA (2512.10794), REED
(2507.08980), or any other encoder's. The features are handed in; no encoder lives here."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .projector import TokenConvolution, mlp, project
from .regulariser import Context, Regulariser, check_block
from .schedules import Schedule, constant
from .similarity import cosine, mean_token

KINDS = ("tokens", "vector")

# (width, hidden, out, grid) -> head
HEADS: dict[str, Callable[[int, int, int, tuple[int, ...]], nn.Module]] = {
    "mlp": lambda width, hidden, out, grid: mlp(width, hidden, hidden, out),  # REPA
    "conv": lambda width, hidden, out, grid: TokenConvolution(width, out, grid),  # iREPA
}


@dataclass(frozen=True)
class Target:
    """One of the features that the student is aligned with.

    Args:
        block: the student's, counted from 1.
        width: Z of the features.
        weight: factor of this target in the sum.
        kind: "tokens", (B, N, Z), or "vector", (B, Z): then the student's tokens are averaged
            before the head.
        grid: of the features' tokens, where it is known beforehand.

    Raises:
        ValueError: an unknown kind, or a block below 1.
    """

    block: int
    width: int
    weight: float = 1.0
    kind: str = "tokens"
    grid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r} of target: choose from {KINDS}")
        check_block(self.block)


class Alignment(Regulariser):
    """Minus the cosine between a block seen through a trained head and the features y.

    L = -sum over targets of weight / (B N) sum cos(head(h_block), y); y gets no gradient.

        REPA   Alignment([Target(8, 768)], 1152, grid=(16, 16))
        iREPA  Alignment([Target(8, 768)], 1152, weight=1.0, grid=(16, 16), head="conv",
                         spatial_norm=True)
        REED   Alignment([Target(8, 768), Target(16, 3584, 0.5, "vector")], 1152, grid=(16, 16),
                         velocity_warmup=50_000)

    Args:
        targets: in the order of `context.targets`.
        width: D of the student.
        weight: factor of the sum, at the schedule's peak.
        grid: of the student's tokens.
        hidden: width of the MLP heads.
        head: of every target, a row of HEADS.
        spatial_norm: take from y its mean over the image's tokens, and divide by its deviation.
        velocity_warmup: steps over which the weight of the velocity loss rises from 0 to 1.
        schedule: factor on the weight as a function of the step.

    Raises:
        ValueError: no target; an unknown head; features on another grid than the student's; a
            pooled vector with a head or a normalization that needs a grid; a normalization over
            one token.
    """

    takes_targets = True

    def __init__(
        self,
        targets: Sequence[Target],
        width: int,
        weight: float = 0.5,
        *,
        grid: Sequence[int],
        hidden: int = 2048,
        head: str = "mlp",
        spatial_norm: bool = False,
        velocity_warmup: int = 0,
        schedule: Schedule = constant,
    ) -> None:
        super().__init__(weight, schedule)
        self.targets, self.grid = tuple(targets), tuple(grid)
        self.on_grid = spatial_norm or head == "conv"
        if not self.targets:
            raise ValueError("Alignment needs at least one target, e.g. Target(block=8, width=768)")
        if head not in HEADS:
            raise ValueError(f"unknown head {head!r}: choose from {', '.join(HEADS)}")
        for target in self.targets:
            if target.grid is not None and tuple(target.grid) != self.grid:
                raise ValueError(
                    f"the target of block {target.block} has the token grid {tuple(target.grid)}, "
                    f"the student {self.grid}: resize the encoder's input until they are equal"
                )
            if target.kind == "vector" and self.on_grid:
                raise ValueError(
                    "a target that is one vector has no grid: use head='mlp' and no spatial_norm"
                )
        if spatial_norm and math.prod(self.grid) < 2:
            raise ValueError("one token has no deviation over the image: leave out spatial_norm")
        self.blocks = tuple(sorted({target.block for target in self.targets}))
        self.projectors = nn.ModuleList(
            HEADS[head](width, hidden, target.width, self.grid) for target in self.targets
        )
        self.spatial_norm, self.velocity_warmup = spatial_norm, velocity_warmup

    def velocity_weight(self, step: int) -> float:
        """REED's: the features come first, then the velocity."""
        return min(1.0, step / self.velocity_warmup) if self.velocity_warmup else 1.0

    def penalty(self, context: Context) -> Tensor:
        """A float32 scalar.

        Raises:
            ValueError: targets that are not as declared; a token mask where a grid is needed.
        """
        if len(context.targets) != len(self.targets):
            raise ValueError(
                f"{len(context.targets)} targets were given, {len(self.targets)} were declared"
            )
        if context.token_mask is not None and self.on_grid:
            raise ValueError("the convolution and the spatial normalization need whole grids")
        loss = 0.0
        for target, head, y in zip(self.targets, self.projectors, context.targets, strict=True):
            student, mask = context.blocks[target.block], context.token_mask
            self.check(target, student, y)
            y = y.detach().float()
            if target.kind == "vector":
                student, y, mask = mean_token(student.float(), mask), y[:, None], None
            if self.spatial_norm:
                y = (y - mean_token(y, None)) / (y.std(1, keepdim=True) + 1e-6)
            loss = loss - target.weight * cosine(project(head, student), y, mask)
        return loss

    def check(self, target: Target, student: Tensor, y: Tensor) -> None:
        batch, tokens = student.shape[0], math.prod(self.grid)
        if student.shape[1] != tokens:
            raise ValueError(f"the student has {student.shape[1]} tokens, its grid is {self.grid}")
        shape = (batch, tokens, target.width) if target.kind == "tokens" else (batch, target.width)
        if y.shape != shape:
            raise ValueError(
                f"the target of block {target.block} is {tuple(y.shape)}, not {shape}: the "
                f"student's token grid is {self.grid}"
            )

    def extra_repr(self) -> str:
        return f"targets={self.targets}, weight={self.peak_weight}"
