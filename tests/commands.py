"""Run our commands as a person does: in this process for speed, in processes of their own under
torchrun's agent, or under torchrun itself."""

import io
import json
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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


def torchrun(script: str, *arguments, processes: int) -> Result:
    """`torchrun --nproc_per_node=processes script.py arguments`, every process started anew."""
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [sys.executable, *words, str(ROOT / f"{script}.py"), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT)
    return Result(done.returncode, done.stdout, done.stderr)


def launch(script: str, *arguments, processes: int = 1, folder: Path = ROOT) -> Result:
    """The same by the agent that torchrun is made of, with ranks forked from a process that has
    imported torch and our commands: 3 seconds where torchrun takes 20 of two cores. The agent tells
    the exit code of the first rank that fails alone, and forked ranks do not run `atexit`: what is
    about either takes `torchrun`.

    Args:
        script: a path without ".py", or a module with a dot in its name.
        folder: where the ranks are at work.
    """
    multiprocessing.set_forkserver_preload(["train", "sample_ddp", "encode", "torch._dynamo"])
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, run_id="tests",
            rdzv_backend="c10d", rdzv_endpoint="localhost:0", monitor_interval=0.1,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.ALL),
        )  # fmt: skip
        words, code, failed = [str(word) for word in arguments], 0, ""
        try:
            with _bounded(seconds=300):
                elastic_launch(config, _rank)(str(script), words, dict(os.environ), folder)
        except ChildFailedError as error:
            code, failed = 1, str(error)  # torchrun's own table of exit codes
        said = {
            stream: "".join(path.read_text() for path in sorted(Path(logs).rglob(stream)))
            for stream in ("stdout.log", "stderr.log")
        }
    return Result(code, said["stdout.log"], said["stderr.log"] + failed)


@contextmanager
def _bounded(seconds: int) -> Iterator[None]:
    """The agent waits for a rank that hangs for ever, and leaves its signal handlers behind."""

    def late(*_):
        raise TimeoutError(f"ranks were at work for {seconds} seconds")

    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGALRM")
    before = {one: signal.getsignal(one) for one in (getattr(signal, name) for name in names)}
    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        for one, handler in before.items():
            signal.signal(one, handler)


def _rank(script: str, words: list[str], env: dict[str, str], folder: Path) -> None:
    os.environ.update(env)  # the process that it was forked from began with older ones
    os.chdir(folder)
    sys.argv = [script, *words]
    try:
        if "." in script:
            runpy.run_module(script, run_name="__main__")
        else:
            runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:  # else it is a return: the agent waits for one
            raise


def launched(script: str, *arguments, **how) -> Result:
    result = launch(script, *arguments, **how)
    assert result.code == 0, result.err
    return result


def score_rows(results: Path) -> list[dict]:
    """What --score-every has logged, of the one run of a results folder."""
    (log,) = results.glob("*/log.jsonl")
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [row for row in found if "scores" in row]


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
