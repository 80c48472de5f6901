"""What a run needs, before it is begun: what `train.py --dry-run` and `--plan` print."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .config import TrainConfig
from .distributed import Ranks
from .hardware import peak_flops
from .log import clock

GIB = 2**30
WARM, TIMED = 3, 10  # steps; the first ones compile and allocate


class Needs(NamedTuple):
    """Of a model, whatever it is trained on."""

    parameters: int  # in a checkpoint
    flops: float  # of an image, forward and backward
    frozen: int = 0  # bytes of parameters beside them, which are not trained

    @property
    def file(self) -> float:
        """A checkpoint in GiB: float32 weights, two moments of AdamW, EMA."""
        return 16 * self.parameters / GIB

    def lines(self) -> list[str]:
        states = (20 * self.parameters + self.frozen) / GIB  # the same and the gradients
        return [
            f"parameters                 {self.parameters:,}",
            f"arithmetic                 {self.flops / 1e9:.2f} GFLOP per image",
            f"memory                     {states:.2f} GiB for weights, gradients, AdamW and EMA, "
            "before activations; of one process, or of all with --shard",
            f"checkpoint                 {self.file:.2f} GiB each",
        ]


class Rate(NamedTuple):
    """What a step was measured to take."""

    seconds: float
    first: int  # of the steps measured, and the last
    last: int


def measured_rate(step: Callable[[], Tensor], left: int) -> Rate:
    """Run a few of the `left` steps. What `step` returns is read at the two ends of the measurement
    alone, so that the host may run ahead of a GPU as it does in training."""
    warm = min(WARM, left - 1)
    last = min(warm + TIMED, left)
    begin = time.perf_counter()
    for done in range(1, last + 1):
        result = step()
        if done in (warm, last):
            result.item()
        if done == warm:
            begin = time.perf_counter()
    return Rate((time.perf_counter() - begin) / (last - warm), warm + 1, last)


def costs(needs: Needs, rate: Rate, config: TrainConfig, ranks: Ranks, *, left: int) -> list[str]:
    """Disk of the whole run, time of the steps that are left."""
    steps, device = config.max_steps, ranks.device
    kept = -(-steps // config.ckpt_every)
    if config.keep_last:
        milestones = steps // config.milestone_every if config.milestone_every else 0
        # One more while it is written: the oldest is deleted after that.
        kept = min(kept, config.keep_last + 1 + milestones)
    unit = "GPU" if device.type == "cuda" else "process"
    per_second = config.global_batch_size / rate.seconds
    seconds = left * rate.seconds
    lines = [
        f"checkpoints                {kept} kept at most: {kept * needs.file:.1f} GiB of disk",
        f"rate                       {per_second:.1f} images/s, {1 / rate.seconds:.2f} steps/s on "
        f"{ranks.size} {unit}; mean of steps {rate.first} to {rate.last}",
        f"run                        {left} of {steps} steps: {clock(seconds)}, "
        f"{seconds * ranks.size / 3600:.1f} {unit} hours",
    ]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / GIB
        lines.append(f"peak memory                {peak:.2f} GiB per GPU, measured")
        if at_best := peak_flops(device):
            share = per_second * needs.flops / (at_best * ranks.size)
            lines.append(f"MFU                        {share:.1%} of the bf16 peak")
    return lines
