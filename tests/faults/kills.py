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

STEPS_PER_KILL = 6  # as many as make a run last longer than its kills


class Pace(NamedTuple):
    """Of a quiet run, in seconds."""

    start: float  # until the first file is being written
    piece: float


def main(flags: argparse.Namespace, folder: Path) -> None:
    count, small = flags.count, max(flags.count // 2, 2)
    images, vae = write_images(folder / "images", small * 5), write_vae(folder / "vae")
    jobs = [
        (training(count * STEPS_PER_KILL), count),
        (encoding(images, vae, small * 5), small),
        (sampling(trained(folder / "ckpt"), small * 5), small),
    ]
    if flags.ranks > 1:
        few = max(flags.count // 10, 2)
        jobs.append((training_on(flags.ranks, few * STEPS_PER_KILL), few))
    for job, kills in jobs:
        campaign(
            job,
            kills,
            random.Random(f"{flags.seed} {job.name}"),
            folder / job.name,
        )


def campaign(job: Job, kills: int, draw: random.Random, folder: Path) -> None:
    """All kills of one job: over one run, or over several if it ends before.

    A run killed before its first checkpoint leaves its folder behind, and the next one is begun.
    """
    folder.mkdir()
    pace = quiet_run(job, folder / "quiet")
    done, inside, runs = 0, 0, 0
    while done < kills:
        out, ended, runs = folder / f"hit{runs}", False, runs + 1
        while not ended:
            running = job.start(out, folder / "out.txt")
            if done < kills:
                strike = (at_a_random_time, at_the_writer)[done % 2]
                ended = not strike(running, out, pace, draw)
                done += not ended
                inside += not ended and any(out.rglob(".*.tmp"))
            else:
                ended = True
            if ended:
                finished(running)
        job.compare(folder / "quiet", out)
        stillborn = [run for run in checkpoint.runs(out) if not checkpoint.files_of(run)]
        left = [path for path in broken_files(out) if not set(stillborn) & set(path.parents)]
        assert not left, f"{job.name} left {', '.join(map(str, left))}"
    say(
        f"{job.name}: {done} kills in {runs} runs, {(done + 1) // 2} at a random time and "
        f"{done // 2} at the writer; {inside} left a half-written file; every end is equal"
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
