"""Memory, open files and threads of a long run: none of them grows.

python -m tests.faults.flat --count 20000
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

import train
from tests.faults.harness import TINY, Forked, finished, say, script

SAMPLES = 100
MOST = 20.0  # KiB per 100 steps that the fit may show for noise, and 4 MiB over the whole run


class Watched(train.Trainer):
    """Notes what the process holds, SAMPLES times in a run."""

    def step(self, batches):
        metrics = super().step(batches)
        if self.state.step % max(self.config.max_steps // SAMPLES, 1) == 0:
            with open(os.environ["FAULTS_HELD"], "a") as file:
                file.write(json.dumps([self.state.step, *held()]) + "\n")
        return metrics


def held() -> tuple[int, int, int]:
    """Resident memory in KiB, open files, threads."""
    status = Path("/proc/self/status").read_text().splitlines()
    numbers = dict(line.split(":\t", 1) for line in status)
    return (
        int(numbers["VmRSS"].split()[0]), len(os.listdir("/proc/self/fd")), int(numbers["Threads"])
    )  # fmt: skip


def main(flags: argparse.Namespace, folder: Path) -> None:
    steps, notes = flags.count, folder / "held"

    def inside() -> None:
        os.environ["FAULTS_HELD"] = str(notes)
        train.Trainer = Watched

    words = [*TINY, "--max-steps", steps, "--ckpt-every", max(steps // 20, 1), "--keep-last", 2]
    words += ["--milestone-every", 0, "--results-dir", folder / "results"]
    finished(Forked("train", words, folder / "out.txt", inside))
    found = np.array([json.loads(line) for line in notes.read_text().splitlines()])
    step, memory, files, threads = found[len(found) // 4 :].T  # after warming up
    slope = np.polyfit(step, memory, 1)[0]  # KiB per step
    grown = slope * (step[-1] - step[0])
    say(
        f"{steps} steps: {memory[-1] / 1024:.0f} MiB, fitted growth {100 * slope:.2f} KiB per 100 "
        f"steps, {grown:.0f} KiB in all; {min(files)} to {max(files)} open files, {min(threads)} "
        f"to {max(threads)} threads"
    )
    assert 100 * slope < MOST or grown < 4096, "memory grows"
    # A checkpoint being written has a file of its own, and its folder's descriptor after it.
    assert max(files) - min(files) <= 2 and np.ptp(threads) <= 1, "files or threads grow"


if __name__ == "__main__":
    script(main, count=20_000)
