"""Dispersive loss: push the images of a batch apart in one block (arXiv 2506.09027)."""

import math

import torch
from torch import Tensor

from .precision import float32_product
from .ranks import gather
from .regulariser import Context, Regulariser, check_block
from .schedules import Schedule, constant


def dispersion(z: Tensor, tau: float) -> Tensor:
    """log of the mean of exp(-d) over all pairs of rows, d = |z_i - z_j|^2 / (N tau).

    The full matrix with its zero diagonal; between 0, all rows alike, and -log B, all far apart.

    Args:
        z: (B, N) in float32 or float64; on CUDA the products are never TF32.
    """
    batch, width = z.shape
    # A common shift changes no distance, but would swallow the digits of the Gram matrix.
    z = z - z.mean(0)
    gram = float32_product(z[None], z.mT[None])[0]
    square = gram.diagonal()
    distance = (square[:, None] + square[None] - 2 * gram).clamp(min=0) / (width * tau)
    same = torch.eye(batch, dtype=torch.bool, device=z.device)
    return (-distance.masked_fill(same, 0)).flatten().logsumexp(0) - 2 * math.log(batch)


class Dispersive(Regulariser):
    """The InfoNCE-like L2 form of the paper, on one block's flattened tokens; no parameters.

    The defaults are the paper's (JAX; block depth // 4); the authors' PyTorch release has weight
    0.25, tau 1 and the last block. The value falls to its bound -log B within a few steps.

    Args:
        block: counted from 1.
        weight: factor of the term, at the schedule's peak.
        tau: the temperature.
        gather: disperse the batch of all ranks; False, as published, each rank's own.
        schedule: factor on the weight as a function of the step.

    Raises:
        ValueError: a block below 1 or a temperature that is not positive.
    """

    may_vanish = True

    def __init__(
        self,
        block: int,
        weight: float = 0.5,
        tau: float = 0.5,
        gather: bool = False,
        *,
        schedule: Schedule = constant,
    ) -> None:
        super().__init__(weight, schedule)
        check_block(block)
        if not tau > 0:
            raise ValueError(f"the Dispersive loss divides by tau: {tau} is not positive")
        self.blocks = (block,)
        self.tau, self.gather = float(tau), gather

    def penalty(self, context: Context) -> Tensor:
        """A float32 scalar.

        Raises:
            ValueError: one image alone, or a token mask: the distance knows no missing tokens.
        """
        if context.token_mask is not None:
            raise ValueError("the Dispersive loss is not defined for images of unequal length")
        z = context.blocks[self.blocks[0]].flatten(1).float()
        z = gather(z) if self.gather else z
        if len(z) < 2:
            raise ValueError(
                "the Dispersive loss of one image is always 0: give each process at least 2, or "
                "gather the batch of all processes"
            )
        return dispersion(z, self.tau)

    def extra_repr(self) -> str:
        return f"block={self.blocks[0]}, weight={self.peak_weight}, tau={self.tau}"
