"""One run of a sweep: train, held-out loss, sample, score; each step once, whatever gets killed."""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from runtime import checkpoint
from runtime.errors import InputError
from runtime.files import write_json
from runtime.untrusted import read_json

ROOT = Path(__file__).parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]
PARENT = "parent"  # folder of the run that another one starts from, in that one's
LAST_LINES = 8  # of a failed step's log that are shown


class Step(NamedTuple):
    """A command and the file that it leaves, complete or not at all, when it is done."""

    name: str
    words: list[str]  # after `python`, as a person types them in the repository's root
    output: Path


@dataclass(frozen=True)
class Run:
    """A row of a table under one preset; a sweep repeats it for every seed."""

    name: str
    flags: dict[str, Any]  # of train.py, over those of the preset
    seed: int = 0
    # Flags of a run that is trained before, and whose EMA weights this one starts from.
    parent: dict[str, Any] | None = None
    paper: dict[str, float] = field(default_factory=dict)  # the published number of each score
    pool: str | None = None  # rows of one name here have a row of their mean besides
    baseline: str | None = None  # name of the row that this one is compared to; None: the first
    needs: tuple[Step, ...] = ()  # made once, before all runs that need it; each takes --device


class Failure(NamedTuple):
    what: str
    log: Path
    last_lines: list[str]


@dataclass(frozen=True)
class Planned:
    """A run with its folder and its commands; plain data, so that it can be sent to a cluster."""

    folder: Path
    steps: tuple[Step, ...]
    record: dict[str, Any]  # what run.json holds

    @property
    def finished(self) -> bool:
        return self.path.exists() and all(step.output.exists() for step in self.steps)

    @property
    def path(self) -> Path:
        return self.folder / "run.json"

    def check(self) -> None:
        """Refuse to go on with what other commands began; a run that has no checkpoint yet has not
        begun, so that a mistyped flag can be put right.

        Raises:
            InputError: naming the first command that differs.
        """
        if not self.path.exists() or not any(self.folder.glob("*/checkpoints/*.pt")):
            return
        there = read_json(self.path).get("commands")
        if not isinstance(there, list):
            raise InputError(f"{self.path} is no record of a sweep: it has no commands")
        for ours, theirs in zip(self.record["commands"], there, strict=False):
            if ours != theirs:
                raise InputError(
                    f"{self.folder} was begun with `{theirs}`, not `{ours}`: "
                    "give the same flags, another --results, or delete it"
                )

    def execute(self, gpus: Sequence[str] = ()) -> Failure | None:
        """Do the steps that are left; None if all went well."""
        if self.finished:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        with only_one(self.folder / "lock") as lock:
            discard_stillborn(self.folder)
            write_json(self.path, self.record)
            for step in self.steps:
                if failure := perform(step, self.folder, lock, gpus):
                    return failure
        return None


def perform(step: Step, folder: Path, lock: int, gpus: Sequence[str]) -> Failure | None:
    """Run a step's command, unless its output is there; what it prints goes to {name}.log.

    Args:
        lock: a file descriptor that the process inherits, see `only_one`.
        gpus: those that it may see; none: it sees what this process sees.
    """
    if step.output.exists():
        return None
    path = folder / f"{step.name}.log"
    with open(path, "ab") as log:
        done = subprocess.run(
            executable(step), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment(gpus), pass_fds=[lock],
        )  # fmt: skip
    if done.returncode == 0 and step.output.exists():
        return None
    lines = path.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return Failure(f"{folder}: {step.name} ended with exit code {done.returncode}", path, lines)


def executable(step: Step) -> list[str]:
    """The command of a step, wherever this process was started."""
    words = [str(ROOT / word) if word.endswith(".py") else word for word in step.words]
    return [sys.executable, *words]


def under_torchrun(words: list[str], gpus: int) -> list[str]:
    """The same command in a process per GPU."""
    return [*TORCHRUN, f"--nproc_per_node={gpus}", *words] if gpus > 1 else words


def environment(gpus: Sequence[str]) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    return os.environ | chosen | {"PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def only_one(path: Path) -> Iterator[int]:
    """Hold a lock that the commands of a run inherit: a killed sweep may leave one of them alive,
    and its successor has to wait for that one before it touches the same files."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path.parent}: another process is at work here; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def discard_stillborn(folder: Path) -> None:
    """Training that died before its first checkpoint starts again, under the same number."""
    for run in [*checkpoint.runs(folder), *checkpoint.runs(folder / PARENT)]:
        if not checkpoint.files_of(run):
            shutil.rmtree(run)


def as_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags of a dataclass as a command line."""
    words = []
    for name, value in flags.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{dashed}" if value else f"--no-{dashed}")
        elif isinstance(value, list):
            words += [f"--{dashed}", *map(str, value)]
        else:
            words += [f"--{dashed}", str(value)]
    return words


def typed(words: Sequence[str]) -> str:
    return f"python {shlex.join(words)}"
