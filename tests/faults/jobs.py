"""The three commands that work for long, tiny, and what has to be equal when they are done.

python -m tests.faults.kills --count 50
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.harness import (
    ROOT,
    TINY,
    Forked,
    Launched,
    Running,
    assert_same_run,
    contents,
    finished,
    nothing,
    torchrun,
)

KEPT = ["--ckpt-every", 2, "--keep-last", 2, "--milestone-every", 0]


class Job(NamedTuple):
    """A command that is hit and started again until it is done.

    Attributes:
        start: (folder to write to, file for what it says, what the child does first) -> the command
            at work.
        pieces: that it writes, one after the other.
        compare: (a folder, another one); fails where they are not equal.
    """

    name: str
    start: Callable[..., Running]
    pieces: int
    compare: Callable[[Path, Path], None]


def job(name: str, command: str, words: list, pieces: int, compare) -> Job:
    """
    Args:
        words: but for the folder to write to, which comes last.
    """

    def start(out: Path, log: Path, inside: Callable[[], None] = nothing) -> Running:
        return Forked(command, [*words, out], log, inside)

    return Job(name, start, pieces, compare)


def training(steps: int, data: list | None = None, name: str = "train") -> Job:
    """
    Args:
        data: flags that name other data than digits.
    """
    words = [*TINY, *KEPT, *(data or []), "--max-steps", steps, "--resume", "auto"]

    def compare(one: Path, other: Path) -> None:
        assert_same_run(one, other, steps)

    return job(name, "train", [*words, "--results-dir"], steps // 2, compare)


def training_on(ranks: int, steps: int) -> Job:
    """Under torchrun."""
    words = [*torchrun("--standalone", f"--nproc_per_node={ranks}"), ROOT / "train.py"]
    words += [*TINY, *KEPT, "--max-steps", steps, "--resume", "auto", "--results-dir"]
    return training(steps, name=f"train-on-{ranks}")._replace(
        start=lambda out, log: Launched([*words, out], log)
    )


def of_images(images: Path) -> list:
    return ["--dataset_name", "folder", "--data-path", images, "--image-size", 16]


def encoding(images: Path, vae: Path, count: int) -> Job:
    words = [*of_images(images), "--vae", vae, "--device", "cpu", "--shard-size", 1]
    words += ["--batch-size", 1, "--num-workers", 0, "--out"]

    def compare(one: Path, other: Path) -> None:
        assert contents(one) == contents(other), "the stores differ"

    return job("encode", "encode", words, count, compare)


def sampling(ckpt: Path, blocks: int) -> Job:
    words = [
        "ODE", "--ckpt", ckpt, "--sampling-method", "euler", "--num-sampling-steps", 3,
        "--per-proc-batch-size", 2, "--num-fid-samples", 2 * blocks - 1, "--device", "cpu",
        "--name", "samples", "--sample-dir",
    ]  # fmt: skip

    def compare(one: Path, other: Path) -> None:
        assert contents(one, "*.npz") == contents(other, "*.npz"), "the .npz differ"
        assert sorted(contents(one)) == sorted(contents(other)), "other files are left"

    return job("sample_ddp", "sample_ddp", words, blocks, compare)


def trained(results: Path) -> Path:
    """A checkpoint to draw from."""
    results.mkdir()
    words = [*TINY, "--max-steps", 2, "--results-dir", results]
    finished(Forked("train", words, results / "out.txt"))
    (path,) = results.glob("*/checkpoints/*.pt")
    return path
