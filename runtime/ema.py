"""The exponential moving average of the weights: what is sampled and scored."""

import copy

import torch
from torch import nn


class EMA:
    """ema <- decay * ema + (1 - decay) * model, in float32, starting as a copy of the model.

    Attributes:
        model: the averaged network, in eval mode.

    Raises:
        ValueError: the model is not in float32. 1 - 0.9999 is below bfloat16's resolution: such an
            average never moves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.float32:
                raise ValueError(f"EMA of {name} in {parameter.dtype}: keep weights in float32")
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        averaged, current = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(averaged, current, 1.0 - self.decay)
