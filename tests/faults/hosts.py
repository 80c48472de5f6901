"""Two hosts, and their cable is cut: training on both is training on one, before and after.

python -m tests.faults.hosts --count 3
"""

import argparse
import random
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

from tests.faults.harness import (
    ROOT,
    TINY,
    Launched,
    assert_same_run,
    broken_files,
    descendants,
    finished,
    lives,
    say,
    script,
    skip,
    torchrun,
    until,
)

RANKS = 2  # on each of the two hosts
STEPS = 300  # more than are done until the last cut
CKPT_EVERY = 10
PATIENCE = 15  # --hang-timeout
WITHIN = PATIENCE + 1  # seconds from the cut to the end of both sides, and one to see it
PORT = 29400


class Host:
    """A namespace of its own for the network, host name and mounts, with one end of the cable."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.address = f"host{number}", f"10.77.0.{number}"
        names = folder / "hosts"
        names.write_text("127.0.0.1 localhost\n10.77.0.1 host1\n10.77.0.2 host2\n")
        setting_up = (
            f"hostname {self.name} && mount --bind {names} /etc/hosts && ip link set lo up && "
            "echo up && exec sleep infinity"
        )
        words = ["unshare", "--net", "--uts", "--mount", "--propagation", "private"]
        self.keeper = subprocess.Popen([*words, "sh", "-c", setting_up], stdout=subprocess.PIPE)
        if self.keeper.stdout.readline() != b"up\n":
            skip("namespaces of network, name and mounts need root and a container that lets it")

    def words(self, *more: str | Path) -> list:
        entering = ["nsenter", "--target", self.keeper.pid, "--net", "--uts", "--mount"]
        return [*entering, f"--wdns={ROOT}", *more]

    def does(self, command: str) -> None:
        subprocess.run([*map(str, self.words(*command.split()))], check=True)

    def train(self, out: Path, log: Path, attempt: int) -> Launched:
        words = torchrun(
            "--nnodes=2", f"--nproc_per_node={RANKS}", "--rdzv_backend=c10d",
            f"--rdzv_endpoint=host1:{PORT}", f"--rdzv_id=attempt-{attempt}",
        )  # fmt: skip
        env = {"GLOO_SOCKET_IFNAME": "cable"}
        return Launched(self.words(*words, ROOT / "train.py", *flags_of_training(out)), log, env)


def flags_of_training(out: Path) -> list:
    words = [*TINY, "--max-steps", STEPS, "--ckpt-every", CKPT_EVERY, "--resume", "auto"]
    return [*words, "--hang-timeout", PATIENCE, "--results-dir", out]


def cabled(folder: Path) -> list[Host]:
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            skip(f"there is no {tool}")
    hosts = [Host(number, folder) for number in (1, 2)]
    first, second = (host.keeper.pid for host in hosts)
    ends = f"ip link add cable netns {first} type veth peer name cable netns {second}"
    if subprocess.run(ends.split()).returncode:
        skip("two namespaces cannot be joined here")
    for host in hosts:
        host.does(f"ip addr add {host.address}/24 dev cable")
        host.does("ip link set cable up")
    return hosts


def main(flags: argparse.Namespace, folder: Path) -> None:
    hosts: list[Host] = []
    try:
        hosts += cabled(folder)
        one = folder / "one-host"
        alone = torchrun("--standalone", f"--nproc_per_node={2 * RANKS}")
        finished(Launched([*alone, ROOT / "train.py", *flags_of_training(one)], folder / "one.txt"))
        cuts(hosts, flags.count, random.Random(f"{flags.seed} hosts"), one, folder)
    finally:
        for host in hosts:
            host.keeper.kill()


def cuts(hosts: list[Host], count: int, draw: random.Random, one: Path, folder: Path) -> None:
    """The cable is cut in the middle of training, both sides end, and are started again."""
    out, waited = folder / "two-hosts", []
    for attempt in range(count + 1):
        before = saved(out)
        logs = [folder / f"{host.name}-{attempt}.txt" for host in hosts]
        running = [h.train(out, log, attempt) for h, log in zip(hosts, logs, strict=True)]
        if attempt == count:
            break
        until(lambda before=before: saved(out) - before, "a checkpoint of this attempt")
        time.sleep(draw.uniform(0, 0.5))
        everybody = [pid for side in running for pid in lineage(side.process.pid)]
        begin = time.monotonic()
        hosts[1].does("ip link set cable down")
        until(partial(all_have_ended, everybody), "the end of both sides", WITHIN)
        waited.append(time.monotonic() - begin)
        for log in logs:
            said = log.read_text()
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            assert errors, f"no message in {said[-1500:]}"
            say(f"    {log.stem}: {errors[0]}")
        hosts[1].does("ip link set cable up")
    for running_one in running:
        finished(running_one)
    assert_same_run(one, out, STEPS)
    assert not broken_files(out)
    took = " ".join(f"{seconds:.0f}" for seconds in waited)
    say(
        f"2 hosts x {RANKS} processes: {count} cuts; both sides had said so and ended after {took} "
        f"seconds of the {PATIENCE} of --hang-timeout, torchrun too; the end is that of "
        f"{2 * RANKS} processes on one host"
    )


def saved(out: Path) -> set[Path]:
    return set(out.glob("*/checkpoints/*.pt"))


def lineage(pid: int) -> list[int]:
    """torchrun and all that it started."""
    return [pid, *descendants(pid)]


def all_have_ended(processes: list[int]) -> bool:
    return not any(map(lives, processes))


if __name__ == "__main__":
    script(main, count=3)
