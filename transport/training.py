"""One training step, velocity loss + weight * regulariser, as the module that DDP or FSDP wraps."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layersync import Context, Regulariser

from .transport import Transport, prediction_of


class Losses(NamedTuple):
    """Three 0-dim float32 tensors: total = velocity + weight * reg."""

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
        **extras: Any,
    ) -> Losses:
        """Losses of data x and noise (B, C, *grid) at times t (B,).

        Args:
            cond: what the model takes besides x_t and t, labels already dropped.
            weight: 0-dim, `regulariser.weight(step)`; 0 gives the plain model's gradients exactly.
            mask: (B, 1, *grid), true where the velocity loss counts.
            token_mask: (B, N), true where the regulariser counts.
            extras: the things named in `regulariser.needs`.
        """
        x_t, _ = self.transport.path.sample(x, noise, t)
        asked = self.regulariser.blocks if self.regulariser else ()
        output = self.model(x_t, t, **cond, **({"return_blocks": asked} if asked else {}))
        pred, blocks = prediction_of(output), output.blocks if asked else {}
        context = Context(blocks, x, noise, t, x_t, cond, token_mask, extras)
        return self.losses(pred, context, weight, mask)

    def losses(self, pred: Tensor, context: Context, weight: Tensor, mask: Tensor | None) -> Losses:
        """Both terms, of a prediction (B, C, *grid) and of the blocks in the context."""
        velocity = self.transport.loss(pred, context.x, context.noise, context.t, mask).mean()
        if self.regulariser is None:
            return Losses(velocity, velocity.detach(), velocity.new_zeros(()))
        reg = self.regulariser.penalty(context)
        return Losses(velocity + weight * reg, velocity.detach(), reg.detach())

    def compile_losses(self, **options: Any) -> None:
        """torch.compile both terms into one graph, in place: with one read of each block's tokens
        the cosine costs a tenth of a percent of a step. `options` go to torch.compile."""
        options = {"fullgraph": True, "dynamic": False} | options
        self.losses = torch.compile(self.losses, **options)
