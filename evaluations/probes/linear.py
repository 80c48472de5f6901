"""Linear probes of all blocks in one pass."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from evaluations.features import Pooled
from runtime.entry import speaks
from runtime.random import generator

from .curves import Curves

PER_EPOCH = 20  # steps at least: small data are read in smaller batches
LEAST_BATCH = 32
# Tiny ImageNet's 50 epochs are so many steps. Heads that have not converged measure how easily
# features are fitted, and not what they tell: small data get more epochs.
LEAST_STEPS = 4850


@dataclass(frozen=True)
class Fit:
    """How heads are trained; REPA's authors state the batch norm (their issue 32)."""

    epochs: int | None = None  # None: 50, or as many as 4,850 steps take
    batch: int = 1024
    lr: float = 1e-3  # AdamW, cosine to 0
    norm: bool = True  # a batch norm before the linear map
    seed: int = 0

    def batch_of(self, images: int) -> int:
        return min(self.batch, images, max(LEAST_BATCH, images // PER_EPOCH))

    def resolved(self, images: int) -> "Fit":
        """The same with the batch and the epochs that so many images get."""
        batch = self.batch_of(images)
        epochs = self.epochs or max(50, -(-LEAST_STEPS // (images // batch)))
        return replace(self, epochs=epochs, batch=batch)


class StackedHeads(nn.Module):
    """A linear map per block, each after a batch norm: (B, L, D) -> (B, L, classes).

    Nothing couples the heads, so that training their summed losses with an optimizer that works
    element by element is training each alone.
    """

    def __init__(self, blocks: int, width: int, classes: int, *, norm: bool, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(blocks * width) if norm else nn.Identity()
        bound = width**-0.5  # as nn.Linear begins
        # The same start for every block: blocks differ in their features alone.
        start = torch.rand(classes, width + 1, generator=generator("cpu", seed, "heads"))
        start = (2 * start - 1) * bound
        self.weight = nn.Parameter(start[:, :-1].repeat(blocks, 1, 1))
        self.bias = nn.Parameter(start[:, -1].repeat(blocks, 1))

    def forward(self, features: Tensor) -> Tensor:
        x = self.norm(features.flatten(1)).view_as(features)
        return torch.einsum("bld,lcd->blc", x, self.weight) + self.bias


def train_heads(
    views: list[Pooled], test: Pooled, classes: int, fit: Fit, device: torch.device
) -> Curves:
    """Train a head per block and test it after every epoch.

    Args:
        views: the training images, and maybe their mirror images: an epoch draws one of each.
    """
    count, blocks, width = views[0].values.shape
    fit = fit.resolved(count)
    heads = StackedHeads(blocks, width, classes, norm=fit.norm, seed=fit.seed).to(device)
    batch, per_epoch = fit.batch, count // fit.batch
    opt = torch.optim.AdamW(heads.parameters(), lr=fit.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, fit.epochs * per_epoch)
    random = np.random.default_rng(fit.seed)
    curves = []
    for _ in tqdm(range(fit.epochs), unit="epoch", desc="probe", disable=not speaks(), leave=False):
        heads.train()
        order, side = random.permutation(count), random.integers(len(views), size=count)
        for number in range(per_epoch):
            rows = np.sort(order[number * batch : (number + 1) * batch])
            x = np.empty((batch, blocks, width), np.float32)
            for one, view in enumerate(views):
                x[side[rows] == one] = view.values[rows[side[rows] == one]]
            y = views[0].classes[rows].to(device)
            logits = heads(torch.from_numpy(x).to(device))
            loss = F.cross_entropy(logits.flatten(0, 1), y.repeat_interleave(blocks)) * blocks
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            schedule.step()
        curves.append(accuracy(heads, test, device))
    return Curves(np.stack(curves))


@torch.no_grad()
def accuracy(heads: StackedHeads, test: Pooled, device: torch.device) -> np.ndarray:
    heads.eval()
    right = torch.zeros(len(test.blocks), device=device)
    for first in range(0, len(test.labels), 4096):
        x = torch.from_numpy(test.values[first : first + 4096].astype(np.float32)).to(device)
        y = test.classes[first : first + 4096].to(device)
        right += (heads(x).argmax(2) == y[:, None]).sum(0)
    return (right / len(test.labels)).double().cpu().numpy()
