"""The runs of a sweep as one small file to commit; RESULTS.md and compare_run are made of these.

python -m experiments.publish results/experiments/table6 --out docs/results/sweeps/table6.json \
    --command "python -m experiments.table6 --preset digits --seeds 0 1 2"
"""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.untrusted import read_json

from .runs import ROOT
from .table import Result, read, run_folders

FOLDER = ROOT / "docs/results/sweeps"
FORMAT = "layersync results 1"
POINTS = 60  # of a run's log, at most


@dataclass(frozen=True)
class Flags:
    """Keep what runs gave: scores, those of real samples, commands, and thinned curves."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = tyro.MISSING  # runs, or folders of runs
    out: Path = tyro.MISSING  # the file to write
    command: str = tyro.MISSING  # the sweep's, as it was typed
    note: str = ""  # what the data are, and what a reader has to know
    commit: str | None = None  # that the runs were made at; None: this checkout's
    # What the sweep itself made of its runs, evidence.json say; of each preset its "table" is shown
    # in RESULTS.md.
    verdict: Path | None = None


@dataclass(frozen=True)
class Published:
    """Runs of one sweep, and what they were made by."""

    command: str
    note: str
    commit: str
    machine: str
    results: list[Result]
    verdict: dict[str, Any]  # by preset; {}: the sweep made nothing of its runs


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    results = read([folder for asked in flags.runs for folder in run_folders(asked)])
    kept = [{**asdict(one), "log": thinned(one.log)} for one in results]
    for one in kept:
        del one["picture"]
    write_json(flags.out, {
        "format": FORMAT, "command": flags.command, "note": flags.note,
        "commit": flags.commit or commit(), "machine": machine(), "runs": kept,
        **({"verdict": read_json(flags.verdict)} if flags.verdict else {}),
    })  # fmt: skip
    print(f"{flags.out}: {len(results)} runs")


def load(path: Path) -> Published:
    """
    Raises:
        InputError: it is no file of `publish`.
    """
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        about = {name: str(content[name]) for name in ("command", "note", "commit", "machine")}
        results = [Result(**one) for one in content["runs"]]
        return Published(**about, results=results, verdict=dict(content.get("verdict", {})))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no file of experiments.publish ({error})") from error


def thinned(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most `POINTS` rows of losses, evenly spread; the last one, and all with scores, stay."""
    every = -(-len(rows) // POINTS)
    last = len(rows) - 1
    return [
        row for number, row in enumerate(rows)
        if (last - number) % max(every, 1) == 0 or "loss" not in row
    ]  # fmt: skip


def commit() -> str:
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = f"{os.cpu_count()} cores of a {platform.machine()} CPU"
    return f"{device}, torch {torch.__version__.split('+')[0]}"


if __name__ == "__main__":
    run(main)
