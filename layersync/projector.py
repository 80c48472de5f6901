"""Heads between a block and a target of another width. They train with the model, outside it."""

from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn


def initialize(module: nn.Module) -> nn.Module:
    """Xavier-uniform weights, the convolution's as one matrix, and zero biases; in place."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(part.weight.data.flatten(1))
            nn.init.zeros_(part.bias)
    return module


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers through the widths, SiLU between them: (..., widths[0]) -> (..., widths[-1]).

    REPA's is mlp(D, 2048, 2048, Z) (arXiv 2410.06940), SRA's mlp(D, 2 D, D) (arXiv 2505.02831).
    """
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.SiLU())]
    return initialize(nn.Sequential(*layers[:-1]))


class TokenConvolution(nn.Module):
    """iREPA's head (arXiv 2512.10794): a 3 x 3 convolution on the token grid.

    (B, N, width) -> (B, N, out), N = height * width of the grid.

    Raises:
        ValueError: a grid that is not 2-D.
    """

    def __init__(self, width: int, out: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        if len(grid) != 2:
            raise ValueError(f"the convolution head needs a grid of 2 axes, not {grid}")
        self.grid = grid
        self.conv = nn.Conv2d(width, out, kernel_size=3, padding=1)
        initialize(self)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.conv(tokens.mT.unflatten(2, self.grid)).flatten(2).mT


def project(head: nn.Module, features: Tensor) -> Tensor:
    """The head's output in float32, whatever the features' type and the run's autocast."""
    device = features.device.type
    # "meta", where FLOPs are counted, has no autocast. torch.amp.is_autocast_available would tell,
    # but torch.compile of torch 2.11 cannot trace it.
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        return head(features.float())
