"""One training step, velocity loss + weight * regulariser, as the module that DDP or FSDP wraps."""

from typing import Any, NamedTuple

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
        if self.regulariser is None:
            pred = prediction_of(self.model(x_t, t, **cond))
            velocity = self.transport.loss(pred, x, noise, t, mask).mean()
            return Losses(velocity, velocity.detach(), velocity.new_zeros(()))

        output = self.model(x_t, t, **cond, return_blocks=self.regulariser.blocks)
        velocity = self.transport.loss(output.pred, x, noise, t, mask).mean()
        context = Context(output.blocks, x, noise, t, x_t, cond, token_mask, extras)
        reg = self.regulariser.penalty(context)
        return Losses(velocity + weight * reg, velocity.detach(), reg.detach())
