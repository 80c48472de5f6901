"""One training step, velocity loss + weight * regulariser, as the module that DDP or FSDP wraps."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layersync import Context, Regulariser

from .transport import Transport, prediction_of


class Losses(NamedTuple):
    """Three 0-dim float32 tensors: total = velocity_weight * velocity + weight * reg."""

    total: Tensor
    velocity: Tensor
    reg: Tensor


class TrainingStep(nn.Module):
    """The model, its objective and a regulariser (or None): forward returns the losses of a batch.

    The regulariser is inside so that its parameters, if it has any, are averaged over the ranks.
    Nothing is drawn and nothing is read back here: t = transport.times(u), noise, dropped labels
    and the weight come from the loop, and the losses stay on the device.
    """

    def __init__(
        self, model: nn.Module, transport: Transport, regulariser: Regulariser | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.transport = transport
        self.regulariser = regulariser

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        t: Tensor,
        cond: dict[str, Any],
        weight: Tensor,
        mask: Tensor | None = None,
        token_mask: Tensor | None = None,
        *,
        velocity_weight: Tensor | None = None,
        ema: nn.Module | None = None,
        uniform: Tensor | None = None,
        targets: tuple[Tensor, ...] = (),
        watch: bool = False,
    ) -> Losses | dict[str, Tensor]:
        """Losses of data x and noise (B, C, *grid) at times t (B,).

        Args:
            cond: what the model takes besides x_t and t, labels already dropped.
            weight: 0-dim, `regulariser.weight(step)`; 0 gives the plain model's gradients exactly.
            mask: (B, 1, *grid), true where the velocity loss counts.
            token_mask: (B, N), true where the regulariser counts.
            velocity_weight: 0-dim, `regulariser.velocity_weight(step)`; None: 1.
            ema, uniform: the EMA model and (B,) numbers in [0, 1), where the regulariser has
                `teacher_blocks`.
            targets: features from elsewhere, for a regulariser that takes them.
            watch: return `regulariser.telemetry` instead; here, because a sharded model gathers
                its weights in this forward pass alone.
        """
        x_t, _ = self.transport.path.sample(x, noise, t)
        asked = self.regulariser.blocks if self.regulariser else ()
        output = self.model(x_t, t, **cond, **({"return_blocks": asked} if asked else {}))
        pred, blocks = prediction_of(output), output.blocks if asked else {}
        teacher = {}
        if self.regulariser and self.regulariser.teacher_blocks:
            teacher = self.seen_by(ema, x, noise, self.regulariser.teacher_time(t, uniform), cond)
        context = Context(blocks, x, noise, t, x_t, cond, token_mask, teacher, targets)
        if watch:
            return self.regulariser.telemetry(context)
        return self.losses(pred, context, weight, mask, velocity_weight)

    @torch.no_grad()
    def seen_by(
        self, ema: nn.Module, x: Tensor, noise: Tensor, t: Tensor, cond: dict[str, Any]
    ) -> dict[int, Tensor]:
        """Blocks of the EMA model, of the same data, noise and labels at times t (B,)."""
        x_t, _ = self.transport.path.sample(x, noise, t)
        asked = self.regulariser.teacher_blocks
        return ema(x_t, t, **cond, return_blocks=asked, only_blocks=True).blocks

    def losses(
        self, pred: Tensor, context: Context, weight: Tensor, mask: Tensor | None,
        velocity_weight: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """Both terms, of a prediction (B, C, *grid) and of the blocks in the context."""
        velocity = self.transport.loss(pred, context.x, context.noise, context.t, mask).mean()
        if self.regulariser is None:
            return Losses(velocity, velocity.detach(), velocity.new_zeros(()))
        reg = self.regulariser.penalty(context)
        weighted = velocity if velocity_weight is None else velocity_weight * velocity
        return Losses(weighted + weight * reg, velocity.detach(), reg.detach())

    def compile_losses(self, **options: Any) -> None:
        """torch.compile both terms into one graph, in place: with one read of each block's tokens
        the cosine costs a tenth of a percent of a step. `options` go to torch.compile."""
        options = {"fullgraph": True, "dynamic": False} | options
        self.losses = torch.compile(self.losses, **options)
