"""The runs of a sweep as one small file to commit; RESULTS.md and compare_run are made of these.

python -m experiments.publish results/experiments/table6 --out docs/results/sweeps/table6.json \
    --command "python -m experiments.table6 --preset digits --seeds 0 1 2"
"""

import os
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from runtime.config import MAY_CHANGE, TrainConfig, parse
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.hardware import device_name
from runtime.presets import PRESETS
from runtime.untrusted import read_json

from .runs import ROOT
from .table import Result, groups_of, in_order, read, run_folders

FOLDER = ROOT / "docs/results/sweeps"
FORMAT = "layersync results 1"
POINTS = 60  # of a run's log, at most
# Flags that runs of a row have alike: only their seed, length and surroundings may differ.
TRAINING = {field.name for field in fields(TrainConfig)} - MAY_CHANGE - {"global_seed"}


@dataclass(frozen=True)
class Flags:
    """Keep what runs gave: scores, those of real samples, commands, and thinned curves."""

    # Runs, or folders of runs; files of publish, too: seeds are added to what is kept in one where
    # the folders of its runs are gone.
    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")
    ] = tyro.MISSING
    out: Path = tyro.MISSING  # the file to write
    command: str = tyro.MISSING  # the sweep's, as it was typed
    # What the data are, and what a reader has to know; None: what an earlier file says.
    note: str | None = None
    commit: str | None = None  # that new runs were made at; None: this checkout's
    # What the sweep itself made of its runs, evidence.json say; of each preset its "table" is shown
    # in RESULTS.md. None: that of an earlier file.
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
    earlier = [load(path) for path in flags.runs if path.suffix == ".json"]
    folders = [path for path in flags.runs if path.suffix != ".json"]
    new = read([folder for asked in folders for folder in run_folders(asked)])
    results = in_order([*(one for file in earlier for one in file.results), *new])
    check_rows(results)
    made_at = [flags.commit or commit()] if new else []
    verdict = {name: found for file in earlier for name, found in file.verdict.items()}
    verdict |= read_json(flags.verdict) if flags.verdict else {}
    kept = [{**asdict(one), "log": thinned(one.log)} for one in results]
    for one in kept:
        del one["picture"]
    write_json(flags.out, {
        "format": FORMAT, "command": flags.command,
        "note": joined(file.note for file in earlier) if flags.note is None else flags.note,
        "commit": joined([*(file.commit for file in earlier), *made_at]),
        "machine": joined([*(file.machine for file in earlier), *([machine()] if new else [])]),
        "runs": kept, **({"verdict": verdict} if verdict else {}),
    })  # fmt: skip
    print(f"{flags.out}: {len(results)} runs")


def check_rows(results: list[Result]) -> None:
    """
    Raises:
        InputError: a run is there twice, or the seeds of a row were not trained alike.
    """
    for (_, name), runs in groups_of(results).items():
        seeds = [run.record["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"RUNS hold a seed of {name} twice: name each run in one place")
        first, *others = (flags_of(run.record) for run in runs)
        for flag in sorted(TRAINING | {"max_steps"}):
            if any(one.get(flag) != first.get(flag) for one in others):
                asked = flag.replace("_", "-")
                raise InputError(f"RUNS hold {name} with different --{asked}: these are two rows")


def flags_of(record: dict[str, Any]) -> dict[str, Any]:
    """The flags that a run was trained with, as its command has them."""
    commands = [shlex.split(command) for command in record["commands"]]
    trained = [words for words in commands if "train.py" in words]
    if not trained:
        return {}
    return dict(vars(parsed(*trained[-1][trained[-1].index("train.py") + 1 :])))


@cache
def parsed(*words: str) -> TrainConfig:
    """The flags of train.py that these words give; it takes a tenth of a second, and there are as
    many commands as runs."""
    return parse(TrainConfig, PRESETS, words)


def joined(parts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(parts))


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
    gpus = torch.cuda.device_count()
    device = torch.device("cuda" if gpus else "cpu")
    many = f"{gpus} x" if gpus else f"{os.cpu_count()} cores of"
    return f"{many} {device_name(device)}, torch {torch.__version__.split('+')[0]}"


if __name__ == "__main__":
    run(main)
