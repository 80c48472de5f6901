"""What fault scripts share: commands to hit, how they end, whether what they leave is whole.

python -m tests.faults.kills --count 50
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from runtime import checkpoint
from runtime.entry import run
from tests.commands import ROOT, assert_same_state

SKIPPED = 77  # exit code, as automake has it: this machine cannot do that
PATIENCE = 900  # seconds for any one command
TINY = (
    "--dataset_name digits --model SiT-Ti/4 --depth 4 --hidden-size 32 --num-heads 2 --lr 1e-3 "
    "--ema-decay 0.9 --num-workers 0 --log-every 10 --sample-every 0 --no-tensorboard "
    "--global-batch-size 12 --device cpu"
).split()


# The script


def arguments(count: int, **more: int) -> argparse.Namespace:
    """The flags of a script: --count, --seed, and others that are numbers."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    for name, default in {"count": count, "seed": 0, **more}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def script(main: Callable[[argparse.Namespace, Path], None], count: int, **more: int) -> NoReturn:
    """Call `main` with the flags and an empty folder; exit 0, or 1 where it finds a fault of ours.

    The folder goes, unless there is something to look at.
    """
    flags, begin = arguments(count, **more), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        main(flags, folder)
    except AssertionError as error:
        print(f"FAILED: {error}; seed {flags.seed}, see {folder}", flush=True)
        sys.exit(1)
    finally:
        for process in [*multiprocessing.active_children(), *started]:
            process.kill()
    subprocess.run(["rm", "-r", str(folder)], check=True)
    print(f"passed; {time.monotonic() - begin:.0f} s")
    sys.exit(0)


def skip(reason: str) -> NoReturn:
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


def say(text: str) -> None:
    print(text, flush=True)


# Commands


def nothing() -> None: ...


started: list["Launched"] = []


class Running(Protocol):
    """A command at work."""

    log: Path  # what it prints

    def alive(self) -> bool: ...

    def kill(self) -> None:
        """SIGKILL to all of its processes."""

    def wait(self) -> int:
        """Its exit code."""


class Forked:
    """A command in a child of this process, which has imported torch already: it starts in tenths
    of a second, and ends like any other.

    Args:
        words: after the command's name.
        inside: called in the child before the command.
    """

    def __init__(
        self, command: str, words: list, log: Path, inside: Callable[[], None] = nothing
    ) -> None:
        import_module(command)
        self.log = log
        fork = multiprocessing.get_context("fork")
        told = [f"{command}.py", *map(str, words)]
        self.process = fork.Process(target=perform, args=(command, told, log, inside), daemon=True)
        self.process.start()

    def alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait(self) -> int:
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"{self.log}: not over in {PATIENCE} s"
        return self.process.exitcode


def perform(command: str, words: list[str], log: Path, inside: Callable[[], None]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = words
    inside()
    run(sys.modules[command].main)


class Launched:
    """A program with all of its descendants: torchrun has its workers in sessions of their own."""

    def __init__(self, words: list, log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [*map(str, words)], stdout=file, stderr=file, cwd=ROOT, env=os.environ | (env or {})
            )
        started.append(self)

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.log}: not over in {PATIENCE} s") from None


def torchrun(*more: str | int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *map(str, more)]


def descendants(pid: int) -> list[int]:
    """Children, their children and so on."""
    try:
        children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def lives(pid: int) -> bool:
    """Whether a process is more than an entry that nobody has asked about yet."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def finished(running: Running) -> str:
    """What a command that has to end well printed."""
    code = running.wait()
    said = running.log.read_text()
    assert code == 0, f"exit code {code}: {said[-1500:]}"
    return said


def ended_well_or_with_a_sentence(running: Running) -> str:
    """The sentence of exit code 2; "" of exit code 0."""
    code = running.wait()
    said = running.log.read_text()
    assert code in (0, 2) and "Traceback" not in said, f"exit code {code}: {said[-1500:]}"
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code == 2), said[-1500:]
    return "".join(errors)


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {seconds:g} s"
        time.sleep(0.02)


# Data to work on


def write_images(folder: Path, count: int, size: int = 16) -> Path:
    """Random pictures of three classes, a folder for each."""
    random_pixels = np.random.RandomState(0)
    for number in range(count):
        path = folder / "abc"[number % 3] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random_pixels.randint(0, 256, (size, size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def write_vae(folder: Path) -> Path:
    """A real AutoencoderKL, as small as may be."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4,
        norm_num_groups=4, scaling_factor=0.18215,
    ).save_pretrained(folder)  # fmt: skip
    return folder


# What is left on the disk


def broken_files(folder: Path) -> list[Path]:
    """Files that are half-written, temporary, or cannot be read."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and broken(path)]


def broken(path: Path) -> bool:
    try:
        READERS[path.suffix](path)
    except Exception:  # whatever it is, somebody will meet it
        return True
    return False


def read_npz(path: Path) -> None:
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].size for name in file.files)


def read_safetensors(path: Path) -> None:
    with safe_open(path, framework="np") as file:
        assert all(file.get_tensor(name).size for name in file.keys())


def read_picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


# A temporary file has none, and is broken for that.
READERS: dict[str, Callable[[Path], object]] = {
    ".pt": checkpoint.read,
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".txt": Path.read_text,
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".png": read_picture,
}


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def last_state(results: Path, step: int) -> dict:
    """The checkpoint of that step in the only run that has it."""
    (path,) = results.glob(f"*/checkpoints/{step:07d}.pt")
    return torch.load(path, weights_only=True)


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Weights, EMA, optimizer and the losses in the log are equal to the bit."""
    assert_same_state(last_state(one, step), last_state(other, step))
    assert losses(one) == losses(other), "log.jsonl tells of other losses"


def losses(results: Path) -> list[tuple[int, float]]:
    (log,) = {path.parents[1] / "log.jsonl" for path in results.glob("*/checkpoints/*.pt")}
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in found if "loss" in row]
