"""Run our commands as a person does: in this process for speed, or under a real torchrun."""

import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent


class Result(NamedTuple):
    code: int
    out: str
    err: str


def call(script: str, *arguments) -> Result:
    """`python script.py arguments`, in this process."""
    from runtime.entry import run

    module = import_module(script)
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"{script}.py", *map(str, arguments)]
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run(module.main)
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = argv
    return Result(code, out.getvalue(), err.getvalue())


def succeed(script: str, *arguments) -> Result:
    result = call(script, *arguments)
    assert result.code == 0, result.err
    return result


def refused(script: str, *arguments) -> str:
    """The one sentence that a command answers to bad input."""
    result = call(script, *arguments)
    assert result.code == 2, (result.code, result.out, result.err)
    said = result.err.strip()
    assert "Traceback" not in said
    assert said.startswith("error: ") and "\n" not in said, said
    return said


def launch(script: str, *arguments, processes: int = 1) -> Result:
    """`torchrun --nproc_per_node=processes script.py arguments`, in processes of its own."""
    starter = [sys.executable]
    if processes > 1:
        starter += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [*starter, str(ROOT / f"{script}.py"), *map(str, arguments)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, env=os.environ, cwd=ROOT
    )
    return Result(done.returncode, done.stdout, done.stderr)


def launched(script: str, *arguments, processes: int = 1) -> Result:
    result = launch(script, *arguments, processes=processes)
    assert result.code == 0, result.err
    return result


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """Within, a file that this process writes takes so many bytes and no more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def checkpoint_of(results: Path, step: int) -> dict:
    """The checkpoint of the only run in a results folder."""
    (path,) = results.glob(f"*/checkpoints/{step:07d}.pt")
    return torch.load(path, weights_only=True)


def flat(content, prefix="") -> dict[str, object]:
    """Nested dicts and lists as {path: leaf}."""
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, (list, tuple)):
        items = enumerate(content)
    else:
        return {prefix: content}
    return {k: v for key, part in items for k, v in flat(part, f"{prefix}/{key}").items()}


def assert_same_state(one: dict, other: dict) -> None:
    """Model, EMA, optimizer and regulariser are equal to the bit."""
    for part in ("model", "ema", "opt", "regulariser", "train_steps"):
        a, b = flat(one[part]), flat(other[part])
        assert a.keys() == b.keys()
        for name, value in a.items():
            same = torch.equal(value, b[name]) if torch.is_tensor(value) else value == b[name]
            assert same, f"{part}{name} differs"
