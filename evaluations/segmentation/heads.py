"""A linear map per block from tokens to the classes of pixels, and its training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from evaluations.features import Subject
from evaluations.metrics.segmentation import IGNORED, confusion, mean_iou
from evaluations.probes.curves import Curves
from runtime.entry import speaks
from runtime.random import generator

from .prepared import Prepared


@dataclass(frozen=True)
class Fit:
    """How the heads are trained; the public code's numbers."""

    epochs: int = 25
    batch: int = 64
    lr: float = 1e-3  # AdamW, constant
    weight_decay: float = 1e-4
    clip: float = 1.0  # of each head's gradient alone
    seed: int = 0


def make_heads(blocks: Sequence[int], width: int, classes: int, seed: int) -> nn.ModuleDict:
    """nn.Linear(width, classes) by block, all from one start."""
    heads = nn.ModuleDict({str(block): nn.Linear(width, classes) for block in blocks})
    for head in heads.values():
        random = generator("cpu", seed, "segmentation head")
        for part in (head.weight, head.bias):
            nn.init.uniform_(part, -(width**-0.5), width**-0.5, generator=random)
    return heads


def logits(head: nn.Module, tokens: Tensor, grid: Sequence[int], size: int) -> Tensor:
    """(B, N, D) -> (B, classes, size, size): mapped token by token, then enlarged bilinearly."""
    small = head(tokens).mT.unflatten(2, tuple(grid))
    return F.interpolate(small, (size, size), mode="bilinear", align_corners=False)


def train(subject: Subject, images: Prepared, test: Prepared, fit: Fit) -> Curves:
    """Train a head per block on tokens that are computed anew in every epoch: those of all blocks
    of VOC would be 24 GB."""
    heads, opt = None, None
    random = np.random.default_rng(fit.seed)
    curves = []
    bar = tqdm(range(fit.epochs), unit="epoch", desc="segmentation", disable=not speaks())
    for epoch in bar:
        for batch, masks in images.batches(random.permutation(len(images)), fit.batch):
            tokens = subject.tokens(batch, draw=epoch)
            if heads is None:
                width = tokens[subject.blocks[0]].shape[-1]
                heads = make_heads(subject.blocks, width, images.classes, fit.seed).to(
                    subject.device
                )
                opt = torch.optim.AdamW(
                    heads.parameters(), lr=fit.lr, weight_decay=fit.weight_decay
                )
            opt.zero_grad(set_to_none=True)
            for block, head in heads.items():  # one after the other: their logits are large
                predicted = logits(head, tokens[int(block)], subject.grid, masks.shape[-1])
                loss = F.cross_entropy(predicted, masks, ignore_index=IGNORED, reduction="sum")
                (loss / (masks != IGNORED).sum().clamp(min=1)).backward()
                nn.utils.clip_grad_norm_(head.parameters(), fit.clip)
            opt.step()
        curves.append(tested(heads, subject, test, fit.batch))
        bar.set_postfix_str(f"mIoU {max(curves[-1]):.2%}")
    return Curves(np.array(curves))


@torch.no_grad()
def tested(heads: nn.ModuleDict, subject: Subject, test: Prepared, batch: int) -> list[float]:
    """Mean IoU of every head."""
    counts = {block: 0 for block in heads}
    for some, masks in test.batches(range(len(test)), batch):
        tokens = subject.tokens(some)
        for block, head in heads.items():
            predicted = logits(head, tokens[int(block)], subject.grid, masks.shape[-1]).argmax(1)
            counts[block] = counts[block] + confusion(masks, predicted, test.classes)
    return [mean_iou(found) for found in counts.values()]
