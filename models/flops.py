"""How much one image costs: the figure behind MFU and the cost of a run."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from .sit import SiT


def train_flops(model: SiT) -> float:
    """FLOPs of the forward and backward pass of one image, 2 per multiply-add: what MFU counts,
    without recomputation, regularisers, optimizer or VAE.

    Counted by torch on a copy without memory, so a new architecture needs no formula. On 32x32
    latents SiT-B/2, L/2 and XL/2 take 138.02, 484.18 and 711.72 GFLOP.
    """
    one, two = counted(model, depth=1), counted(model, depth=2)
    return one + (model.depth - 1) * (two - one)  # its blocks are alike


def counted(model: SiT, depth: int) -> int:
    config = model.config | {"depth": depth}
    with torch.device("meta"):
        copy = SiT(**config, class_dropout_prob=0.0)
        x = torch.empty(1, model.in_channels, *config["input_size"])
        y = torch.empty(1, model.num_classes) if config["multi_label"] else torch.zeros(1).long()
        with FlopCounterMode(display=False) as counter:
            copy(x, torch.empty(1), y).pred.sum().backward()
    return counter.get_total_flops()
