"""The exponential moving average of the weights: what is sampled and scored."""

import copy
import math

import torch
from torch import Tensor, nn

from .parallel import local

HALF_LIFE_SHARE = 0.05  # of a run, at most


def slow_ema(decay: float, steps: int) -> str | None:
    """What to say where the average is still near the initial weights after so many steps."""
    half_life = math.inf if decay == 1 else math.log(0.5) / math.log(decay) if decay else 0
    if half_life <= steps * HALF_LIFE_SHARE:
        return None
    shorter = 0.5 ** (1 / max(1.0, steps * HALF_LIFE_SHARE))
    return (
        f"note: at --ema-decay {decay:g} the samples of {steps} steps are of weights from "
        f"{half_life:.0f} steps before and more: give --ema-decay {shorter:.4g}"
    )


class EMA:
    """ema <- decay * ema + (1 - decay) * model, in float32, starting as a copy of the model.

    What is frozen in the model is not copied: both use the same tensors.

    Attributes:
        model: the averaged network, in eval mode.

    Raises:
        ValueError: what is trained is not in float32. 1 - 0.9999 is below bfloat16's resolution:
            such an average never moves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                raise ValueError(f"EMA of {name} in {parameter.dtype}: keep weights in float32")
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(model, memo=frozen).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, skip: Tensor | None = None) -> None:
        """
        Args:
            skip: (), true where nothing is to change; nothing waits for it.
        """
        both = zip(self.model.parameters(), model.parameters(), strict=True)
        averaged, current = zip(*(pair for pair in both if pair[1].requires_grad), strict=True)
        # One step of SGD down `ema - model` is the average, and its kernel heeds `found_inf`.
        torch._fused_sgd_(
            list(map(local, averaged)), list(map(local, current)), [], maximize=True,
            weight_decay=1.0, lr=1.0 - self.decay, momentum=0.0, dampening=0.0, nesterov=False,
            is_first_step=False, found_inf=None if skip is None else skip.float(),
        )  # fmt: skip
