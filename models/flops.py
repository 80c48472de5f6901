"""How much one image costs: the figure behind MFU and the cost of a run."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from .denoiser import Denoiser


def train_flops(model: Denoiser) -> float:
    """FLOPs of the forward and backward pass of one image, 2 per multiply-add: what MFU counts,
    without recomputation, regularisers, optimizer or VAE.

    Counted by torch on a copy without memory, so a new architecture needs no formula. On 32x32
    latents SiT-B/2, L/2 and XL/2 take 138.02, 484.18 and 711.72 GFLOP.
    """
    one, two = counted(model, depth=1), counted(model, depth=2)
    return one + (model.depth - 1) * (two - one)  # its blocks are alike


def counted(model: Denoiser, depth: int) -> int:
    with torch.device("meta"):
        copy = model.like(depth=depth)
        x = torch.empty(1, model.in_channels, *model.config["input_size"])
        cond = copy.example_condition()
        with FlopCounterMode(display=False) as counter:
            copy(x, torch.empty(1), **cond).pred.sum().backward()
    return counter.get_total_flops()
