"""The scripts of tests/faults that hit runs, with small budgets; the slow tests have the whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.faults.harness import SKIPPED

SMALL = {
    "kills": ["--count", "4", "--ranks", "1"],
    "disks": ["--count", "1"],
    "nan": ["--count", "8"],
    "flat": ["--count", "400"],
}


def passes(name: str, *flags: str, seconds: int = 600) -> None:
    words = [sys.executable, "-m", f"tests.faults.{name}", *flags]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=seconds)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SMALL)
def test_a_few_faults_change_nothing(name):
    passes(name, *SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, "hosts", "elastic"])
def test_all_faults_change_nothing(name):
    passes(name, seconds=7200)


SRUN = """#!/bin/sh
shift  # --kill-on-bad-exit
exec "$@"
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$2" = hostnames ] && printf 'node1\\nnode2\\n'
"""
PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
mkdir -p "$RESULTS/000-run" && [ -n "$STOPPED" ] && sleep 0.1 && touch "$RESULTS/000-run/requeue"
exit "$CODE"
"""


def stub(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("code", "stopped", "requeued"), [(0, "", False), (1, "yes", True), (1, "", False)]
)
def test_the_slurm_script_requeues_a_run_that_was_asked_to_stop(tmp_path, code, stopped, requeued):
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        stub(tmp_path, name, text)
    calls = tmp_path / "calls"
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "STOPPED": stopped,
        "RESULTS": str(tmp_path / "results"), "CODE": str(code), "SLURM_JOB_ID": "123457",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    words = ["bash", str(ROOT / "experiments/slurm/train.sbatch"), "--preset", "t1-xl"]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    _, launched, *rest = calls.read_text().splitlines()
    for word in (
        "--nnodes=2", "--nproc_per_node=4", "--rdzv_endpoint=node1:23457", "--rdzv_id=123457",
        "--resume auto --preset t1-xl",
    ):  # fmt: skip
        assert word in launched
    assert rest == (["requeue 123457"] if requeued else [])
