"""Sweeps whose commands run in this process, for speed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from experiments import runs
from tests.commands import call

TINY = ["--", "--depth", 2, "--hidden-size", 16, "--num-heads", 2, "--ckpt-every", 4]
TINY += ["--log-every", 2, "--lr", 0.01, "--ema-decay", 0.5, "--no-tensorboard"]
SHORT = ["--preset", "digits", "--max-steps", 12, "--samples", 40, "--device", "cpu"]
MODULES = {"evaluations.images": "evaluations.images.__main__"}


@pytest.fixture
def results(tmp_path, digits_classifier):
    """A results folder in which the classifier is trained already."""
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(digits_classifier, folder)
    return folder


@pytest.fixture
def here(monkeypatch):
    """The commands of a sweep are called in this process; returns those that were."""
    called = []

    def in_process(words, *, stdout, **kwargs):
        called.append(words[1:])
        if words[1] == "-m":
            result = call(MODULES.get(words[2], words[2]), *words[3:])
        else:
            result = call(Path(words[1]).stem, *words[2:])
        stdout.write((result.out + result.err).encode())
        return subprocess.CompletedProcess(words, result.code)

    monkeypatch.setattr(runs.subprocess, "run", in_process)
    return called
