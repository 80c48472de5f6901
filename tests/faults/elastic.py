"""A run goes on with 1, 2, 3 and 1 processes again: the same data in the same order.

python -m tests.faults.elastic --count 4
"""

import argparse
from itertools import cycle
from pathlib import Path

import torch

from tests.commands import flat
from tests.faults.harness import (
    ROOT,
    TINY,
    Forked,
    Launched,
    Running,
    finished,
    last_state,
    losses,
    say,
    script,
    torchrun,
)

PART = 6  # steps with one number of processes
CLOSE = 1e-4  # of losses and weights, relative: sums over ranks are in another order


def main(flags: argparse.Namespace, folder: Path) -> None:
    sizes = [size for size, _ in zip(cycle((1, 2, 3, 1)), range(flags.count), strict=False)]
    last = PART * len(sizes)
    words = [*TINY, "--log-every", 1, "--ckpt-every", PART, "--lr", 1e-4, "--resume", "auto"]

    def part(name: str, ranks: int, stop: int) -> Running:
        more = [*words, "--max-steps", stop, "--results-dir", folder / name]
        if ranks == 1:
            return Forked("train", more, folder / "out.txt")
        start = [*torchrun("--standalone", f"--nproc_per_node={ranks}"), ROOT / "train.py"]
        return Launched([*start, *more], folder / "out.txt")

    finished(part("straight", 1, last))
    for number, ranks in enumerate(sizes, start=1):
        finished(part("elastic", ranks, number * PART))
    one, other = losses(folder / "straight"), losses(folder / "elastic")
    assert [step for step, _ in one] == [step for step, _ in other] == list(range(1, last + 1))
    away = max(abs(b - a) / abs(a) for (_, a), (_, b) in zip(one, other, strict=True))
    exact = sum(a == b for a, b in zip(one[:PART], other[:PART], strict=True))
    states = [last_state(folder / name, last) for name in ("straight", "elastic")]
    a, b = (torch.cat([w.flatten() for w in flat(s["ema"]).values()]) for s in states)
    apart = ((a - b).norm() / a.norm()).item()
    say(
        f"{' -> '.join(map(str, sizes))} processes, {PART} steps each: {exact} losses of the first "
        f"part equal to the bit, all within {away:.1e}; EMA weights within {apart:.1e}"
    )
    assert exact == PART and away < CLOSE and apart < CLOSE


if __name__ == "__main__":
    script(main, count=4)
