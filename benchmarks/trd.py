"""What TRD costs on a video's tokens, forward and backward: time, and memory of the process.

OMP_NUM_THREADS=1 python -m benchmarks.trd
"""

import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.report import GIB, LEAST, Contestant, MeasureFlags, interleave, parse, publish
from layersync import trd
from runtime import distributed
from runtime.entry import run
from runtime.random import generator


@dataclass(frozen=True)
class Flags(MeasureFlags):
    """Measure TRD alone, without a model, on random features.

    The defaults are the tokens of one video of CogVideoX-2B, 33 frames of 480 x 720 pixels.
    """

    rounds: int = 1  # one contestant has no turns to take
    calls: int = 1  # timed calls per round
    settle: int = 0  # untimed calls before them
    warmup: int = 1  # untimed calls before the first round
    batch: int = 1  # videos
    frames: int = 9  # of tokens
    height: int = 30  # tokens of a column
    width: int = 45  # tokens of a row
    channels: int = 1920  # of a token


def main() -> None:
    sizes = ("batch", "frames", "height", "width", "channels")
    flags = parse(Flags, LEAST | dict.fromkeys(sizes, 1))
    device = distributed.start_alone("benchmarks.trd", flags.device).device
    contestant = Contestant("trd", lambda: built(flags, device), flags.batch)
    (one,) = interleave([contestant], device, flags).values()
    memory = {
        "held_gib": one.held_bytes / GIB,
        "step_gib": one.step_bytes / GIB,
        "process_gib": process_bytes() / GIB,
    }
    title = (
        f"TRD forward and backward, {flags.batch} x {flags.frames} x {flags.height} x "
        f"{flags.width} tokens of {flags.channels} channels"
    )
    publish("trd", title, [one.times() | memory], flags, device)


def built(flags: Flags, device: torch.device) -> Callable[[], Any]:
    shape = flags.batch, flags.frames * flags.height * flags.width, flags.channels
    random = generator(device, "trd")
    student, teacher = (torch.randn(shape, device=device, generator=random) for _ in range(2))
    student.requires_grad_()
    return lambda: torch.autograd.grad(trd(student, teacher, frames=flags.frames), student)


def process_bytes() -> int:
    """The most memory that this process ever had, interpreter and libraries included."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts KiB


if __name__ == "__main__":
    run(main)
