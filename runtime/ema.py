"""The exponential moving average of the weights: what is sampled and scored."""

import copy

import torch
from torch import nn


class EMA:
    """ema <- decay * ema + (1 - decay) * model, in float32, starting as a copy of the model.

    Attributes:
        model: the averaged network, in eval mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        averaged, current = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(averaged, current, 1.0 - self.decay)
