"""What a regulariser of the training loss declares and what it is shown; LayerSync is one."""

from typing import Any, NamedTuple

from torch import Tensor, nn


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
    extras: dict[str, Any] = {}  # what it listed in `needs`, by name


class Regulariser(nn.Module):
    """A term added to the velocity loss. The training loop knows no subclass by name.

    Attributes:
        blocks: numbers of the blocks that the model's forward must return.
        needs: names of the other things it needs: "ema", "raw", "features".

    Parameters of a subclass (projectors) train with the model and are stored beside it, never in
    it; sampling never calls a regulariser.
    """

    blocks: tuple[int, ...] = ()
    needs: frozenset[str] = frozenset()

    def weight(self, step: int) -> float:
        """The factor of the term in the total loss at a step counted from 0."""
        raise NotImplementedError

    def penalty(self, context: Context) -> Tensor:
        """The term itself: a float32 scalar."""
        raise NotImplementedError
