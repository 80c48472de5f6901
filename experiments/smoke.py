"""Every experiment, small, from an empty folder: does all of it run here?

python -m experiments.smoke --results results/smoke
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from runtime.entry import run, speaks
from runtime.errors import InputError

from .runs import ROOT, typed

SWEEPS = (
    "gate", "rivals", "table1", "table2", "table3", "table5", "table6", "table7", "table8",
    "figure2", "distances", "schedule", "similarities", "controls", "prune", "depths",
    "evidence",
)  # fmt: skip


@dataclass(frozen=True)
class Flags:
    """Run every sweep on the digits for a few steps. Killed and started again, it goes on.

    Every command has one thread, unless OMP_NUM_THREADS says else: several runs at a time would
    wait for each other's.
    """

    results: Path = Path("results/smoke")  # the folder of all sweeps
    max_steps: int = 6  # of every run
    samples: int = 60  # of every run
    jobs: int = 2  # runs at the same time


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    small = ["--preset", "digits", "--max-steps", str(flags.max_steps), "--device", "cpu"]
    small += ["--samples", str(flags.samples), "--jobs", str(flags.jobs)]
    small += ["--results", str(flags.results), "--", "--no-tensorboard", "--sample-every", "0"]
    commands = [["-m", f"experiments.{name}", *small] for name in SWEEPS]
    commands.append(["-m", "experiments.table9", "--out", str(flags.results / "table9")])
    failed = []
    for words in commands:
        print(typed(words), flush=True)
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        if subprocess.run([sys.executable, *words], cwd=ROOT, env=environment).returncode:
            failed.append(words[1])
    if failed:
        raise InputError(f"{', '.join(failed)} failed: what they said is above")


if __name__ == "__main__":
    run(main)
