"""Runs that are hit: damaged checkpoints, signals, dead or late ranks, steps not to be taken."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import domains
import training
from domains import store
from domains.image_store import ImageEncoding, content_of
from domains.order import GlobalBatches
from runtime import distributed
from runtime.config import TrainConfig
from runtime.distributed import Ranks
from runtime.errors import REQUEUE
from runtime.resume import MARK
from tests.commands import (
    ROOT,
    assert_same_state,
    call,
    checkpoint_of,
    flat,
    launch,
    launched,
    refused,
    succeed,
)

SMALL = (
    "--model SiT-Ti/4 --depth 4 --hidden-size 32 --num-heads 2 --lr 1e-3 --ema-decay 0.9 "
    "--num-workers 0 --global-batch-size 12 --sample-every 0 --no-tensorboard"
).split()
DIGITS = [*SMALL, "--dataset_name", "digits"]
COUNT, BATCH = 48, 12


def run_of(results: Path) -> Path:
    (run,) = results.iterdir()
    return run


def rows(results: Path) -> list[dict]:
    return [json.loads(line) for line in (run_of(results) / "log.jsonl").read_text().splitlines()]


# Damaged checkpoints


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory):
    results = tmp_path_factory.mktemp("six")
    succeed("train", *DIGITS, "--max-steps", 6, "--ckpt-every", 2, "--results-dir", results)
    return run_of(results)


def flipped(content: bytes) -> bytes:
    """One bit of a tensor is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def truncated(content: bytes) -> bytes:
    return content[:-1000]


@pytest.fixture
def damaged(six_steps, tmp_path):
    """The run with its last checkpoint damaged by a function."""

    def damage(change) -> Path:
        folder = tmp_path / "results" / six_steps.name / "checkpoints"
        folder.mkdir(parents=True)
        for path in (six_steps / "checkpoints").iterdir():
            content = path.read_bytes()
            (folder / path.name).write_bytes(change(content) if "6" in path.name else content)
        return folder

    return damage


@pytest.mark.parametrize("change", [flipped, truncated])
def test_the_checkpoint_before_a_damaged_one_is_used(damaged, six_steps, change):
    folder = damaged(change)
    if change is flipped:  # what torch does not notice
        torch.load(folder / "0000006.pt", weights_only=True)
    results = folder.parent.parent
    flags = ["--max-steps", 6, "--resume", "auto", "--results-dir", results]
    said = succeed("train", *DIGITS, *flags).err
    assert "0000006.pt is damaged" in said and "the one before it is used" in said
    assert_same_state(checkpoint_of(results, 6), checkpoint_of(six_steps.parent, 6))
    assert (folder / "0000006.pt.damaged").exists(), "it is set aside, for whoever looks into it"


def test_a_folder_is_resumed_like_auto_but_a_damaged_file_is_refused(damaged):
    folder = damaged(flipped)
    flags = ["--max-steps", 6, "--results-dir", folder.parent.parent]
    assert "0000006.pt is damaged" in refused(
        "train", *DIGITS, *flags, "--ckpt", folder / "0000006.pt"
    )
    assert not list(folder.glob("*.damaged")), "what is refused changes nothing"
    succeed("train", *DIGITS, *flags, "--ckpt", folder.parent)
    assert sorted(p.name for p in folder.iterdir())[-2:] == ["0000006.pt", "0000006.pt.damaged"]


def test_a_run_without_a_whole_checkpoint_is_refused(damaged):
    folder = damaged(flipped)
    for path in folder.iterdir():
        path.write_bytes(truncated(path.read_bytes()))
    flags = ["--max-steps", 6, "--resume", "auto", "--results-dir", folder.parent.parent]
    result = call("train", *DIGITS, *flags)
    assert result.code == 2 and "error: every checkpoint in" in result.err


def step_of_no_number(content: dict) -> None:
    next(iter(content["opt"]["state"].values()))["step"] = torch.zeros(5)


def no_step(content: dict) -> None:
    next(iter(content["opt"]["state"].values()))["step"] = torch.tensor(torch.nan)


def shifted_to_before_the_data(content: dict) -> None:
    content["guard"]["shift"] = -50


def weights_of_nan(content: dict) -> None:
    content["model"]["x_embedder.proj.bias"].fill_(torch.nan)


def moments_of_nan(content: dict) -> None:
    next(iter(content["opt"]["state"].values()))["exp_avg"].fill_(torch.nan)


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (step_of_no_number, "its optimizer state is not that of this model"),
        (no_step, "its optimizer state is not that of this model"),
        (shifted_to_before_the_data, "its counts of skipped steps are damaged"),
        (weights_of_nan, "holds numbers that are not finite"),
        (moments_of_nan, "holds numbers that are not finite"),
    ],
)
def test_a_state_that_no_run_has_is_refused_before_the_first_step(
    six_steps, tmp_path, tamper, sentence
):
    content = torch.load(six_steps / "checkpoints/0000006.pt", weights_only=True)
    tamper(content)
    torch.save(content, tmp_path / "0000006.pt")
    flags = ["--ckpt", tmp_path / "0000006.pt", "--max-steps", 7, "--results-dir", tmp_path / "new"]
    assert sentence in refused("train", *DIGITS, *flags)
    assert not (tmp_path / "new").exists()


def test_files_without_checksums_are_read(six_steps, tmp_path):
    """Those of torch before 1.6."""
    content = torch.load(six_steps / "checkpoints/0000006.pt", weights_only=True)
    old = tmp_path / "0000006.pt"
    torch.save(content, old, _use_new_zipfile_serialization=False)
    succeed("train", *DIGITS, "--ckpt", old, "--max-steps", 7, "--results-dir", tmp_path / "new")
    assert checkpoint_of(tmp_path / "new", 7)["train_steps"] == 7


def test_a_full_disk_under_standard_output_is_one_sentence():
    """What a job prints goes to a file, and that has no name for the process."""
    prints = "from runtime.entry import run; run(lambda: print('step 1', flush=True))"
    words = [sys.executable, "-c", prints]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: a file or standard output: No space left on device\n"


# Signals


class Running:
    """A command in a process of its own, perhaps under torchrun."""

    def __init__(self, *arguments, processes: int = 1, torchrun=()) -> None:
        starter = [sys.executable]
        if processes > 1:
            starter += ["-m", "torch.distributed.run", "--standalone"]
            starter += [f"--nproc_per_node={processes}", *torchrun]
        self.process = subprocess.Popen(
            [*starter, *map(str, arguments)], cwd=ROOT, text=True, env=os.environ,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def rank(self, number: int) -> int:
        """The process id of a rank."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if f"RANK={number}".encode() in environment:
                return int(child)
        raise LookupError(f"no rank {number} among {children}")

    def wait_for(self, found) -> None:
        deadline = time.monotonic() + 240
        while not found():
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.02)

    def ended(self) -> tuple[int, str]:
        out, err = self.process.communicate(timeout=240)
        return self.process.returncode, out + err


ENDLESS = ["--max-steps", 10**6, "--log-every", 1]


def test_sigterm_saves_and_asks_to_be_run_again(tmp_path):
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    script = ROOT / "train.py"
    running = Running(script, *DIGITS, *ENDLESS, "--results-dir", stopped, "--num-workers", 1)
    running.wait_for(lambda: list(stopped.glob("*/log.jsonl")) and len(rows(stopped)) > 3)
    os.killpg(running.process.pid, signal.SIGTERM)  # as Slurm: to the readers too
    running.process.send_signal(signal.SIGUSR1)
    code, said = running.ended()
    assert code == REQUEUE == 75, said
    assert "stopped by a signal after step" in said and "Traceback" not in said
    assert (run_of(stopped) / MARK).exists()
    (path,) = (run_of(stopped) / "checkpoints").iterdir()
    done = int(path.stem)
    flags = ["--max-steps", done + 2, "--results-dir"]
    succeed("train", *DIGITS, *flags, stopped, "--resume", "auto")
    succeed("train", *DIGITS, *flags, straight)
    assert_same_state(checkpoint_of(straight, done + 2), checkpoint_of(stopped, done + 2))
    assert not (run_of(stopped) / MARK).exists()


def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path):
    running = Running(ROOT / "train.py", *DIGITS, *ENDLESS, "--results-dir", tmp_path, processes=2)
    running.wait_for(lambda: list(tmp_path.glob("*/log.jsonl")) and len(rows(tmp_path)) > 1)
    os.kill(running.rank(1), signal.SIGUSR1)
    code, said = running.ended()
    assert code == 1 and said.count("exitcode  : 75") == 2, said
    (path,) = (run_of(tmp_path) / "checkpoints").iterdir()
    assert rows(tmp_path)[-1]["step"] == int(path.stem) and (run_of(tmp_path) / MARK).exists()


SLOW_TO_CLOSE = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import train
from runtime import distributed
from runtime.entry import run
from runtime.log import Log
from runtime.pulse import Pulse
from runtime.saver import Saver

folder = Path(sys.argv[1])

def close():
    time.sleep(7)
    (folder / "closed").touch()

def main():
    ranks = distributed.start("cpu")
    log = Log(folder, ranks, start=0, stop=9, images_per_step=1)
    log.writers = [SimpleNamespace(close=close)] if ranks.is_main else []
    saver = Saver(folder, ranks, keep_last=0, milestone_every=0)
    with Pulse(ranks, 0, patience=600) as pulse:
        train.stop(1, log, saver, pulse)

run(main)
"""


def test_a_stopped_run_is_marked_and_its_log_closed_however_long_that_takes(tmp_path):
    """wandb uploads what it has when it is closed; ranks leave together, within seconds."""
    (tmp_path / "slow.py").write_text(SLOW_TO_CLOSE)
    result = launch(tmp_path / "slow", tmp_path, processes=2)
    assert "exitcode  : 75" in result.err, result.err
    assert (tmp_path / MARK).exists() and (tmp_path / "closed").exists()


def test_sampling_ends_at_once_and_goes_on_later(six_steps, tmp_path):
    flags = ["--ckpt", six_steps, "--num-fid-samples", 80, "--per-proc-batch-size", 4]
    flags += ["--num-sampling-steps", 20, "--sampling_method", "euler", "--sample-dir"]
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    running = Running(ROOT / "sample_ddp.py", "ODE", *flags, stopped, "--name", "x")
    running.wait_for(lambda: len(list(stopped.glob("x.blocks/*.npz"))) > 2)
    running.process.send_signal(signal.SIGUSR1)
    code, said = running.ended()
    assert code == REQUEUE and "run it again to go on" in said and "Traceback" not in said
    assert not list(stopped.rglob("*.tmp"))
    for folder in (stopped, straight):
        succeed("sample_ddp", "ODE", *flags, folder, "--name", "x")
    assert (stopped / "x.npz").read_bytes() == (straight / "x.npz").read_bytes()


# Dead and late ranks


def test_torchrun_starts_again_after_a_killed_rank_and_the_run_goes_on(tmp_path):
    hit, straight = tmp_path / "hit", tmp_path / "straight"
    flags = [*DIGITS, "--max-steps", 60, "--ckpt-every", 10]
    resume = ["--results-dir", hit, "--resume", "auto"]
    running = Running(
        ROOT / "train.py", *flags, *resume, processes=2, torchrun=["--max-restarts=1"]
    )
    running.wait_for(lambda: list(hit.glob("*/checkpoints/0000010.pt")))
    os.kill(running.rank(1), signal.SIGKILL)
    code, said = running.ended()
    assert code == 0, said
    launched("train", *flags, "--results-dir", straight, processes=2)
    assert_same_state(checkpoint_of(straight, 60), checkpoint_of(hit, 60))


def test_a_stopped_rank_is_named_with_its_step(tmp_path):
    flags = [*DIGITS, *ENDLESS, "--results-dir", tmp_path, "--hang-timeout", 6]
    running = Running(ROOT / "train.py", *flags, processes=2)
    running.wait_for(lambda: list(tmp_path.glob("*/log.jsonl")) and len(rows(tmp_path)) > 1)
    late = running.rank(1)
    os.kill(late, signal.SIGSTOP)
    running.wait_for(lambda: len(children_of(running.process.pid)) < 2)  # the other one gives up
    os.kill(late, signal.SIGCONT)  # else torchrun gives it 30 seconds
    code, said = running.ended()
    assert code == 1 and said.count("error: no step ends within --hang-timeout 6: ") == 1, said
    assert "process 1 does not answer, last heard of in step" in said


def test_a_torchrun_whose_store_does_not_answer_is_ended_too(tmp_path):
    flags = [*DIGITS, *ENDLESS, "--results-dir", tmp_path, "--hang-timeout", 6]
    running = Running(ROOT / "train.py", *flags, processes=2)
    running.wait_for(lambda: list(tmp_path.glob("*/log.jsonl")) and len(rows(tmp_path)) > 1)
    late = running.rank(1)
    for process in (running.process.pid, late):
        os.kill(process, signal.SIGSTOP)
    assert running.process.wait(timeout=60) == -signal.SIGKILL  # else it would stand for ever
    os.kill(late, signal.SIGKILL)
    _, said = running.ended()
    assert said.count("error: no step ends within --hang-timeout 6: the job's store at ") == 1, said


def test_torchrun_is_known_from_a_script_between_it_and_the_process(tmp_path):
    asks = tmp_path / "asks.py"
    asks.write_text("from runtime import distributed; print(distributed.torchrun())")
    starts = tmp_path / "torchrun"
    starts.write_text(
        "import os, subprocess, sys\n"
        "print(os.getpid(), flush=True)\n"
        "for words in ([], ['sh', '-c', '\"$@\"; exit', 'script']):\n"
        "    subprocess.run([*words, sys.executable, sys.argv[1]], check=True)\n"
    )
    words = [sys.executable, starts, asks]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    torchrun, without, with_a_script = done.stdout.split()
    assert without == torchrun and with_a_script == "None"


def children_of(pid: int) -> list[str]:
    """Its processes that live."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    states = {
        c: Path(f"/proc/{c}/stat").read_text().rpartition(")")[2].split()[0] for c in children
    }
    return [child for child, state in states.items() if state != "Z"]


# Steps that are not finite


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """A store of latents: (folder, number of the image of whose latent a part is NaN)."""
    folder, bad = tmp_path_factory.mktemp("latents"), 7
    codec = {"name": "none such", "scale": 1.0, "shift": 0.0, "sha256": "0"}
    encoding = ImageEncoding(codec, "folder", COUNT, 3, 16, (4, 8, 8), COUNT, "images")
    moments = torch.randn(COUNT, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1)).abs()
    moments[bad, :, 0, 0, 0] = torch.nan
    content = content_of(moments.half(), torch.arange(COUNT) % 3)
    (shard,) = encoding.shards
    store.write_shard(folder, encoding, shard, content)
    store.write_manifest(folder, encoding)
    return folder, bad


def steps_with(image: int, stop: int, shift: int = 0) -> list[int]:
    """The steps, from 1, whose batches have an image."""
    order = GlobalBatches(COUNT, BATCH, seed=0, start=0, stop=1, rank=0, ranks=1)
    return [s + 1 for s in range(stop) if image in order.global_batch(s + shift).index]


@pytest.mark.parametrize("more", [[], ["--grad-accum", 3, "--clip-grad-norm", 0.5]])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(latents, tmp_path, more):
    folder, bad = latents
    first, *later = steps_with(bad, 12)
    flags = [*SMALL, "--dataset_name", "latents", "--data-path", folder, "--log-every", 100, *more]
    flags += ["--results-dir", tmp_path, "--resume", "auto"]
    before = after = None
    for stop in (first - 1, first, 12):
        if stop:
            succeed("train", *flags, "--max-steps", stop)
            before, after = after, checkpoint_of(tmp_path, stop)
        if stop == first and before:
            assert_same_state(before | {"train_steps": first}, after)
    assert all(torch.isfinite(v).all() for v in flat(after).values() if torch.is_tensor(v))
    named = [row for row in rows(tmp_path) if "skipped_step" in row]
    assert [row["step"] for row in named] == [first, *later]
    assert all(bad in row["images"] and len(row["images"]) == BATCH for row in named)
    assert rows(tmp_path)[-1]["skipped_steps"] == len(named) == after["guard"]["skipped"]


@pytest.mark.parametrize("shard", ["--no-shard", "--shard"])
def test_ranks_skip_together(latents, tmp_path, shard):
    """Though one of them alone has the image."""
    folder, bad = latents
    flags = [*SMALL, "--dataset_name", "latents", "--data-path", folder, "--max-steps", 8]
    launched("train", *flags, "--results-dir", tmp_path, shard, processes=2)
    state = checkpoint_of(tmp_path, 8)
    skipped = [row["step"] for row in rows(tmp_path) if "skipped_step" in row]
    assert skipped == steps_with(bad, 8)
    assert all(torch.isfinite(v).all() for v in flat(state).values() if torch.is_tensor(v))
    assert {moments["step"].item() for moments in state["opt"]["state"].values()} == {
        8 - len(skipped)
    }


def test_too_many_in_a_row_lead_back_to_a_checkpoint_and_on_with_other_data(latents, tmp_path):
    """To the same bits, whether the run was interrupted or not."""
    folder, bad = latents
    flags = [*SMALL, "--dataset_name", "latents", "--data-path", folder, "--max-skipped", 0]
    flags += ["--ckpt-every", 1, "--log-every", 1, "--resume", "auto", "--results-dir"]
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    said = succeed("train", *flags, straight, "--max-steps", 12).out
    for stop in (5, 9, 12):
        succeed("train", *flags, parts, "--max-steps", stop)
    one, other = checkpoint_of(straight, 12), checkpoint_of(parts, 12)
    assert_same_state(one, other)
    counts = ("skipped", "in_row", "shift", "rollbacks")
    assert [one["guard"][name] for name in counts] == [other["guard"][name] for name in counts]

    meetings, shift, step = 0, 0, 0  # with the image: each moves the data on by one batch
    while step < 12:
        met = step + 1 in steps_with(bad, 12, shift)
        meetings, shift, step = meetings + met, shift + met, step + (not met)
    assert [one["guard"][name] for name in counts] == [meetings, 0, meetings, meetings]
    assert said.count("warning: training broke down") == meetings > 1
    steps = [row["step"] for row in rows(straight) if "loss" in row]
    assert steps == list(range(1, 13)), "every step once"


def test_a_run_that_cannot_be_mended_ends_with_one_sentence(tmp_path):
    flags = [*DIGITS, "--lr", "1e30", "--max-skipped", 2, "--max-steps", 60, "--log-every", 1]
    result = call("train", *flags, "--results-dir", tmp_path / "a")
    assert result.code == 1 and "before its first checkpoint" in result.err
    result = call("train", *flags, "--results-dir", tmp_path / "b", "--ckpt-every", 1)
    assert result.code == 1 and "Traceback" not in result.err
    assert "training broke down 4 times after step 1, each time with other data" in result.err


def trainer_of(**flags) -> training.Trainer:
    device = torch.device("cpu")
    config = TrainConfig(
        dataset_name="digits", model="SiT-Ti/4", depth=2, hidden_size=32, num_heads=2,
        global_batch_size=12, max_steps=10, grad_accum=2, loss_type="vanilla", **flags,
    )  # fmt: skip
    config, *parts = training.build(config, device)
    return training.Trainer(config, *parts, Ranks(0, 1, device))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_activations_that_are_not_finite_are_skipped(value):
    """In one micro-batch of one step; 1e30 is finite, and its square is not."""
    trainer, state = trainer_of(), None
    images = trainer.domain.train_set(augment=False)
    calls = []

    def hurt(module, inputs, output):
        calls.append(1)
        return output * value if len(calls) == 4 else output

    trainer.model.final_layer.register_forward_hook(hurt)
    for step in range(3):
        batches = [images.__getitems__(domains.Draws.plain(range(6))) for _ in range(2)]
        metrics = trainer.step(iter(batches))
        before, state = state, [p.clone() for p in trainer.model.parameters()]
        unchanged = before and all(map(torch.equal, before, state))
        assert bool(unchanged) == (step == 1) == bool(metrics["loss"].isnan())
    assert trainer.state.guard.look(3) == {2: "its gradient is not finite"}


def test_deterministic_kernels_are_recorded(tmp_path):
    for name in ("--deterministic", "--no-deterministic"):
        succeed("train", *DIGITS, "--max-steps", 2, "--results-dir", tmp_path / name, name)
    one, other = (checkpoint_of(tmp_path / n, 2) for n in ("--deterministic", "--no-deterministic"))
    assert one["args"]["deterministic"] and not torch.are_deterministic_algorithms_enabled()
    assert_same_state(one, other)


def test_a_crash_in_one_rank_ends_the_other(tmp_path):
    """Here of the kind that nobody foresaw."""
    script = tmp_path / "crash.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import train\n"
        "from runtime.entry import run\n"
        "step = train.Trainer.step\n"
        "def crash(self, batches):\n"
        "    if self.ranks.rank == 1 and self.state.step == 2:\n"
        "        raise AssertionError('unforeseen')\n"
        "    return step(self, batches)\n"
        "train.Trainer.step = crash\n"
        "run(train.main)\n"
    )
    flags = [*DIGITS, *ENDLESS, "--results-dir", tmp_path / "results"]
    begin = time.monotonic()
    code, said = Running(script, *flags, processes=2).ended()
    assert code == 1 and time.monotonic() - begin < 200
    assert "AssertionError: unforeseen" in said
    assert said.count("error: another process has ended") == 1


NOT_FINITE = """
import sys
from runtime import distributed
from runtime.entry import run

def main():
    ranks = distributed.start("cpu")
    ranks.barrier()
    if str(ranks.rank) in sys.argv[1]:
        raise FloatingPointError("samples are not finite")
    ranks.barrier()  # waits for the other for ever

run(main)
"""


@pytest.mark.parametrize("ranks", ["01", "1"])
def test_what_is_not_finite_is_said_once_whichever_ranks_see_it(tmp_path, ranks):
    """In training all do; each rank has samples of its own."""
    (tmp_path / "job.py").write_text(NOT_FINITE)
    result = launch(tmp_path / "job", ranks, processes=2)
    assert result.err.count("error: samples are not finite") == 1, result.err
    assert "exitcode  : 1 " in result.err


def test_a_store_that_is_gone_says_that_all_have_left():
    """Without torchrun's store rank 0 hosts one, until it has counted the others."""
    host = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    store = dist.TCPStore("localhost", host.port, is_master=False)
    assert not distributed.all_have_left(store, 2, seconds=0)
    del host
    assert distributed.all_have_left(store, 2, seconds=60)
