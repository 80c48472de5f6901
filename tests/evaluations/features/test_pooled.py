"""Mean tokens on disk: once, whole, of all ranks, and never more in memory than a batch."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import domains
from domains import Draws
from evaluations.features import Denoiser, Modules, Reading, View, pooled
from evaluations.features.rows import ABANDONED, Rows
from runtime.config import SampleFlags
from runtime.distributed import Ranks
from runtime.errors import LocalError
from sampling import open_checkpoint
from tests.commands import ROOT, launched, refused, succeed
from tests.evaluations.lab import digits_run

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, perturb):
    return digits_run(tmp_path_factory.mktemp("runs"), perturb)


@pytest.fixture
def subject(run):
    opened = open_checkpoint(SampleFlags(ckpt=str(run), compile="off"), ALONE.device)
    return Denoiser(opened, view=View(noise=0.2))


def test_they_are_the_means_over_the_tokens_in_the_order_asked_for(subject, tmp_path):
    images, numbers = domains.build("digits").held_out_set(), [7, 0, 300]
    found = pooled(subject, Reading(images, numbers, "digits", batch_size=2), tmp_path, ALONE)
    tokens = subject(images.__getitems__(Draws.plain(numbers)))
    for block in (1, 2, 3, 4):
        torch.testing.assert_close(found.of(block), tokens[block].mean(1), rtol=2e-3, atol=2e-3)
    assert found.labels.tolist() == images.__getitems__(Draws.plain(numbers)).y.tolist()


def test_a_second_look_reads_what_the_first_has_written(subject, tmp_path, monkeypatch):
    images = domains.build("digits").held_out_set()

    def look(numbers=(1, 2), data="digits", mirrored=False):
        reading = Reading(images, numbers, data, mirrored=mirrored)
        return pooled(subject, reading, tmp_path, ALONE)

    first = look()
    monkeypatch.setattr(subject, "tokens", lambda *_: pytest.fail("looked again"))
    assert np.array_equal(look().values, first.values)
    for change in ({"numbers": (2, 1)}, {"data": "other"}, {"mirrored": True}):
        with pytest.raises(pytest.fail.Exception):
            look(**change)


def test_a_killed_look_leaves_nothing_that_counts(subject, tmp_path, monkeypatch):
    images, calls = domains.build("digits").held_out_set(), []
    tokens = subject.tokens

    def dies_in_the_middle(batch, draw=0):
        calls.append(1)
        if len(calls) == 4:  # the first look is at the shapes
            raise KeyboardInterrupt
        return tokens(batch, draw)

    monkeypatch.setattr(subject, "tokens", dies_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        pooled(subject, Reading(images, range(9), "d", batch_size=3), tmp_path, ALONE)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(subject, "tokens", tokens)
    found = pooled(subject, Reading(images, range(9), "d", batch_size=3), tmp_path, ALONE)
    assert np.abs(found.values).max(1).min() > 0 and not list(tmp_path.glob(".*"))


def test_two_jobs_that_look_at_the_same_time_both_have_whole_features(
    subject, tmp_path, monkeypatch
):
    images, tokens, calls = domains.build("digits").held_out_set(), subject.tokens, []

    def look():
        reading = Reading(images, range(9), "digits", batch_size=3)
        return pooled(subject, reading, tmp_path, ALONE)

    def another_looks_in_the_middle(batch, draw=0):
        calls.append(1)
        if len(calls) == 3:  # a third is written
            look()
        return tokens(batch, draw)

    monkeypatch.setattr(subject, "tokens", another_looks_in_the_middle)
    found = look()
    assert np.abs(found.values).max((1, 2)).min() > 0 and not list(tmp_path.glob(".*"))


def test_what_a_killed_job_has_left_is_deleted_a_day_later(tmp_path):
    old, new = tmp_path / ".a.npy.killed.tmp", tmp_path / ".a.npy.running.tmp"
    for path in (old, new):
        path.write_bytes(b"rows")
    os.utime(old, (0, time.time() - 2 * ABANDONED))
    Rows(tmp_path / "a.npy", "<f2", (3, 2)).create()
    assert not old.exists() and new.exists()


def test_features_that_float16_does_not_hold_are_refused(subject, tmp_path, monkeypatch):
    tokens = subject.tokens
    huge = {4: torch.full((1, 16, 32), 1e6)}
    monkeypatch.setattr(subject, "tokens", lambda batch, draw=0: tokens(batch, draw) | huge)
    with pytest.raises(LocalError, match="features beyond float16"):
        images = domains.build("digits").held_out_set()
        pooled(subject, Reading(images, [1], "d"), tmp_path, ALONE)
    assert not list(tmp_path.iterdir())


def test_what_tells_two_looks_apart_is_what_features_depend_on(subject, run, perturb, tmp_path):
    """Weights, view, path of the interpolant: or old features would be taken for new ones."""
    torch_file = torch.load(run, weights_only=True)
    gvp = tmp_path / "0000010.pt"
    torch.save(torch_file | {"args": torch_file["args"] | {"path_type": "GVP"}}, gvp)

    def of(path, **view):
        opened = open_checkpoint(SampleFlags(ckpt=str(path), compile="off"), ALONE.device)
        return Denoiser(opened, view=View(**{"noise": 0.2} | view)).identity

    other = digits_run(tmp_path, perturb, seed=5)
    looks = [of(run), of(gvp), of(other), of(run, noise=0.3), of(run, label="true"),
             of(run, latent="mode"), of(run, seed=1)]  # fmt: skip
    assert all(a != b for i, a in enumerate(looks) for b in looks[:i])
    assert of(run) == looks[0] == subject.identity


def test_blocks_of_unequal_width_are_not_stacked(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 3))
    subject = Modules(model, ["0", "1"], lambda batch: batch.raw[:, 0].float(), "two widths")
    images = domains.build("digits").held_out_set()
    with pytest.raises(ValueError, match="two widths has blocks of unequal width"):
        pooled(subject, Reading(images, [1], "d"), tmp_path, ALONE)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk takes root to mount")
def test_a_full_disk_is_said_before_the_work(run, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", small])
    if mount.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        said = refused("evaluations.features.__main__", run, "--device", "cpu", "--out", small)
        assert "No space left" in said or "full" in said
        assert not [path for path in small.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", small])


def test_a_folder_holds_features_of_one_look(run, tmp_path):
    words = [run, "--blocks", 2, "--device", "cpu", "--out", tmp_path, "--images"]
    succeed("evaluations.features.__main__", *words, 10)
    assert "is finished" in succeed("evaluations.features.__main__", *words, 10).out
    said = refused("evaluations.features.__main__", *words, 12)
    assert "holds features of another images: give another --out" in said
    assert len(np.load(tmp_path / "numbers.npy")) == 10


def test_two_processes_write_what_one_writes(run, tmp_path):
    words = ["--images", 70, "--blocks", 1, 4, "--device", "cpu", "--out"]
    succeed("evaluations.features.__main__", run, *words, tmp_path / "one")
    launched("evaluations.features.__main__", run, *words, tmp_path / "two", processes=2)
    for name in ("block_01.npy", "block_04.npy", "labels.npy"):
        one, two = (np.load(tmp_path / folder / name) for folder in ("one", "two"))
        assert len(one) == 70 and np.allclose(one, two, rtol=2e-3, atol=2e-3)


MEMORY = """
import resource, sys, torch
from pathlib import Path
from evaluations.features import Denoiser, Reading, pooled
from runtime.config import SampleFlags
from runtime.distributed import Ranks
from sampling import open_checkpoint
from tests.evaluations.lab import Noise
cpu = torch.device("cpu")
subject = Denoiser(open_checkpoint(SampleFlags(ckpt=sys.argv[1], compile="off"), cpu))
images, peak = Noise(4000, (1, 32, 32)), []
for count in (64, 4000):
    reading = Reading(images, range(count), str(count))
    pooled(subject, reading, Path(sys.argv[2]), Ranks(0, 1, cpu))
    peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peak[1] - peak[0])
"""


def test_memory_stays_at_one_batch_of_tokens(tmp_path, perturb):
    """4,000 images x 28 blocks x 64 tokens of 16 numbers would be 459 MB in float32."""
    args = dict(dataset_name="fashion-mnist", image_size=32, num_classes=10, vae="none")
    path = digits_run(tmp_path, perturb, args=args, depth=28, hidden_size=16, input_size=32,
                      patch_size=4)  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, path, tmp_path / "out"], cwd=ROOT, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout) / 1024
    assert grown < 60, f"{grown:.0f} MB more for 4,000 images than for 64"


def test_tokens_are_streamed_too(run, tmp_path):
    succeed("evaluations.features.__main__", run, "--pool", "none", "--blocks", 2, "--images", 9,
            "--part", "held-out", "--device", "cpu", "--out", tmp_path)  # fmt: skip
    assert np.load(tmp_path / "block_02.npy").shape == (9, 16, 32)
    assert not list(tmp_path.glob(".*")) and len(np.load(tmp_path / "labels.npy")) == 9
