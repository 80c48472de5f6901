"""SIGKILL at random times, half of them at whoever writes a file: the end is that of a quiet run.

python -m tests.faults.kills --count 50
"""

import argparse
import random
import time
from pathlib import Path
from typing import NamedTuple

from runtime import checkpoint
from tests.faults.harness import (
    Running,
    broken_files,
    finished,
    say,
    script,
    write_images,
    write_vae,
)
from tests.faults.jobs import Job, encoding, sampling, trained, training, training_on

PIECES_PER_KILL = 10  # as many files as make a run last longer than its kills
LEAST_PIECES = 60  # where this process is kept waiting, several are written before it strikes


class Pace(NamedTuple):
    """Of a quiet run, in seconds."""

    start: float  # until the first file is being written
    piece: float


def main(flags: argparse.Namespace, folder: Path) -> None:
    kills, pieces = flags.count, pieces_for(flags.count)
    images, vae = write_images(folder / "images", pieces), write_vae(folder / "vae")
    jobs = [
        (training(2 * pieces), kills),
        (encoding(images, vae, pieces), kills),
        (sampling(trained(folder / "ckpt"), pieces), kills),
    ]
    if flags.ranks > 1:
        few = max(flags.count // 10, 2)
        jobs.append((training_on(flags.ranks, 2 * pieces_for(few)), few))
    for job, kills in jobs:
        campaign(job, kills, random.Random(f"{flags.seed} {job.name}"), folder / job.name)


def pieces_for(kills: int) -> int:
    return max(PIECES_PER_KILL * kills, LEAST_PIECES)


def campaign(job: Job, kills: int, draw: random.Random, folder: Path) -> None:
    """All kills over one run.

    Killed before its first checkpoint, it leaves a folder behind that the next start does not use.
    """
    folder.mkdir()
    pace = quiet_run(job, folder / "quiet")
    out, log, inside = folder / "hit", folder / "out.txt", 0
    for number in range(kills):
        strike = (at_a_random_time, at_the_writer)[number % 2]
        running = job.start(out, log)
        hit = strike(running, out, pace, draw)
        assert hit, f"{job.name} ended after {number} of {kills} kills: {log.read_text()[-500:]}"
        inside += any(out.rglob(".*.tmp"))
    finished(job.start(out, log))
    job.compare(folder / "quiet", out)
    stillborn = [run for run in checkpoint.runs(out) if not checkpoint.files_of(run)]
    left = [path for path in broken_files(out) if not set(stillborn) & set(path.parents)]
    assert not left, f"{job.name} left {', '.join(map(str, left))}"
    say(
        f"{job.name}: {kills} kills of one run, {(kills + 1) // 2} at a random time and "
        f"{kills // 2} at the writer; {inside} left a half-written file; the end is equal"
    )


def quiet_run(job: Job, out: Path) -> Pace:
    begin = time.monotonic()
    running = job.start(out, out.with_suffix(".txt"))
    wait_for_writing(running, out)
    first = time.monotonic() - begin
    finished(running)
    assert not broken_files(out)
    return Pace(first, (time.monotonic() - begin - first) / job.pieces)


def at_a_random_time(running: Running, out: Path, pace: Pace, draw: random.Random) -> bool:
    """From the very start on; whether it was killed, and not over by then."""
    deadline = time.monotonic() + draw.uniform(0, pace.start + 4 * pace.piece)
    while time.monotonic() < deadline and running.alive():
        time.sleep(0.002)
    return killed(running)


def at_the_writer(running: Running, out: Path, pace: Pace, draw: random.Random) -> bool:
    """While one of the next files is being written, or milliseconds after."""
    for _ in range(draw.randint(1, 3)):
        wait_for_writing(running, out)
    time.sleep(draw.choice((0, 0, draw.uniform(0, 0.005), draw.uniform(0, 0.05))))
    return killed(running)


def killed(running: Running) -> bool:
    was_alive = running.alive()
    if was_alive:
        running.kill()
    return was_alive


def wait_for_writing(running: Running, out: Path) -> None:
    """Until a temporary file appears that was not there when this was called."""
    before = set(out.rglob(".*.tmp"))
    while running.alive() and not set(out.rglob(".*.tmp")) - before:
        time.sleep(0.0003)


if __name__ == "__main__":
    script(main, count=50, ranks=2)
