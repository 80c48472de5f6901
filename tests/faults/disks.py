"""Disks that are full, read-only, or fail one read in a hundred: a sentence, and on when mended.

python -m tests.faults.disks --count 20
"""

import argparse
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.faults.harness import (
    broken_files,
    ended_well_or_with_a_sentence,
    finished,
    say,
    script,
    skip,
    until,
    write_images,
    write_vae,
)
from tests.faults.jobs import Job, encoding, of_images, sampling, trained, training

ONE_IN = 100  # reads fail
INSIDE = "FAULTS_INSIDE"  # set within the mounts' own namespace
LIBRARY = Path(__file__).with_name("failing_reads.c")
STEPS, PIECES = 12, 12
WHOLE = (".pt", ".npz", ".safetensors")  # what an interrupted job goes on from


def main(flags: argparse.Namespace, folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    images, vae = write_images(folder / "images", 36), write_vae(folder / "vae")
    ckpt = trained(folder / "ckpt")
    pixels = [*of_images(images), "--vae", "none"]
    jobs = [
        training(STEPS, pixels), encoding(images, vae, PIECES), sampling(ckpt, PIECES)
    ]  # fmt: skip
    sources = folder  # all that is read lies there
    for job in jobs:
        finished(job.start(folder / job.name, folder / "out.txt"))
    latents = ["--dataset_name", "latents", "--data-path", folder / "encode"]
    jobs.append(training(STEPS, latents, "train on latents"))
    finished(jobs[-1].start(folder / jobs[-1].name, folder / "out.txt"))
    for job in jobs:
        draw = random.Random(f"{flags.seed} {job.name}")
        full_disks(job, flags.count, draw, disk, folder)
        read_only(job, disk, folder)
        failing_reads(job, flags.count, draw, sources, folder)


def full_disks(job: Job, count: int, draw: random.Random, disk: Path, folder: Path) -> None:
    """Of sizes from nothing to what the whole job needs."""
    quiet, log = folder / job.name, folder / "out.txt"
    kept = [path.stat().st_size for path in quiet.rglob("*") if path.is_file()]
    # KiB in pages of 4; the pieces of what is packed at last take some too.
    needed = sum(4 * math.ceil(size / 4096) for size in kept) + 4 * job.pieces
    sentences = 0
    for _ in range(count):
        mount(disk, f"size={draw.randint(4, 2 * needed)}k")
        sentences += bool(ended_well_or_with_a_sentence(job.start(disk / "out", log)))
        left = [path for path in broken_files(disk) if path.suffix != ".jsonl"]
        assert not left, f"{job.name} on a full disk left {', '.join(map(str, left))}"
        call("mount", "-o", "remount,size=1g", disk)
        finished(job.start(disk / "out", log))
        assert_like(job, quiet, disk / "out")
        call("umount", disk)
    say(
        f"{job.name}: {count} disks of 4 to {2 * needed} KiB: {sentences} sentences, "
        f"{count - sentences} finished; every end is equal"
    )


def read_only(job: Job, disk: Path, folder: Path) -> None:
    """From the beginning; in the middle, a disk that was writable before."""
    quiet, log = folder / job.name, folder / "out.txt"
    mount(disk, "size=1g")
    for begun in (False, True):
        if begun:
            running = job.start(disk / "out", log)
            until(lambda: any(p.suffix in WHOLE for p in disk.rglob("*.*")), "the first file")
            running.kill()
        call("mount", "-o", "remount,ro", disk)
        sentence = ended_well_or_with_a_sentence(job.start(disk / "out", log))
        assert "Read-only" in sentence, f"{job.name}: {sentence!r}"
        call("mount", "-o", "remount,rw", disk)
    finished(job.start(disk / "out", log))
    assert_like(job, quiet, disk / "out")
    call("umount", disk)
    say(f"{job.name}: a read-only disk, before and in the middle: 2 sentences; the end is equal")


def failing_reads(job: Job, count: int, draw: random.Random, sources: Path, folder: Path) -> None:
    """Of all that the job reads: data, networks, checkpoints, and what it wrote before."""
    out, log, tally = folder / "out", folder / "out.txt", folder / "tally"
    tally.touch()
    sentences = set()
    for _ in range(count):
        for _ in range(100):
            failing = fail_reads(sources, draw.randrange(2**30), tally)
            sentence = ended_well_or_with_a_sentence(job.start(out, log, failing))
            if not sentence:
                break
            assert "Input/output error" in sentence, f"{job.name} takes it for damage: {sentence}"
            sentences.add(sentence)
        finished(job.start(out, log))
        assert_like(job, folder / job.name, out)
        shutil.rmtree(out)
    failed = len(tally.read_text().splitlines())
    tally.unlink()
    say(
        f"{job.name}: {failed} reads failed in {count} runs, which finished, each end is equal; "
        f"{len(sentences)} sentences{''.join(f'{chr(10)}    {s}' for s in sorted(sentences))}"
    )
    assert failed, f"{job.name}: no read has failed"


def fail_reads(folder: Path, seed: int, tally: Path) -> Callable[[], None]:
    def inside() -> None:
        os.environ |= {
            "FAULTS_FOLDER": str(folder), "FAULTS_SEED": str(seed), "FAULTS_TALLY": str(tally),
            "FAULTS_ONE_IN": str(ONE_IN),
        }  # fmt: skip

    return inside


def assert_like(job: Job, quiet: Path, out: Path) -> None:
    job.compare(quiet, out)
    left = broken_files(out)
    assert not left, f"{job.name} left {', '.join(map(str, left))}"


def mount(disk: Path, options: str) -> None:
    call("mount", "-t", "tmpfs", "-o", options, "none", disk)


def call(*words: str | Path) -> None:
    subprocess.run(list(map(str, words)), check=True)


def start_inside() -> None:
    """This script again, in a namespace where mounts are nobody else's, with reads that can fail.

    Skipped where that cannot be had.
    """
    if INSIDE in os.environ:
        return
    for tool in ("unshare", "mount", "gcc"):
        if shutil.which(tool) is None:
            skip(f"there is no {tool}")
    alone = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "none", "/mnt"]).returncode:
        skip("mounting needs root and a container that lets it")
    library = Path(os.environ.get("TMPDIR", "/tmp")) / f"failing-reads-{os.getpid()}.so"
    call("gcc", "-shared", "-fPIC", "-O1", "-o", library, LIBRARY, "-ldl")
    more = {INSIDE: "yes", "LD_PRELOAD": str(library)}
    words = [*alone, sys.executable, "-m", "tests.faults.disks", *sys.argv[1:]]
    try:
        sys.exit(subprocess.run(words, env=os.environ | more).returncode)
    finally:
        library.unlink()


if __name__ == "__main__":
    start_inside()
    script(main, count=20)
