"""Sweeps whose commands run in this process, for speed."""

import subprocess
from pathlib import Path

import pytest

import domains
from evaluations.extractors import classifier
from experiments import runs
from tests.commands import call

TINY = ["--", "--depth", 2, "--hidden-size", 16, "--num-heads", 2, "--ckpt-every", 4]
TINY += ["--log-every", 2, "--lr", 0.01, "--ema-decay", 0.5, "--no-tensorboard"]
SHORT = ["--preset", "digits", "--max-steps", 12, "--samples", 40, "--device", "cpu"]
MODULES = {"evaluations.images": "evaluations.images.__main__"}


@pytest.fixture(scope="session")
def trained_classifier(tmp_path_factory):
    file = tmp_path_factory.mktemp("classifier") / "classifier-digits.pt"
    classifier.train_to_file(domains.build("digits"), file, min_accuracy=0.5)
    return file


@pytest.fixture
def results(tmp_path, trained_classifier):
    """A results folder in which the classifier is trained already."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / trained_classifier.name).write_bytes(trained_classifier.read_bytes())
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
