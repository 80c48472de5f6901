"""A sweep does what is left to do, once; whatever was killed or failed."""

import dataclasses
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest
import tyro

import sample_ddp
from evaluations import heldout, progress
from evaluations.images import __main__ as images
from evaluations.motion import __main__ as motion
from experiments import runs
from experiments.sweep import Experiment, chosen_rows
from methods import features
from runtime import config
from runtime.presets import PRESETS
from tests.commands import ROOT, call, refused, succeed
from tests.experiments import small
from tests.experiments.conftest import SHORT, TINY
from transport import PROTOCOLS

SCRIPTS = {
    path.stem: import_module(f"experiments.{path.stem}")
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "main = partial(sweep" in path.read_text()
}


def run_small(results, *arguments):
    return call("tests.experiments.small", *SHORT, "--results", results, *arguments, *TINY)


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_touched_again(results, here):
    assert run_small(results).code == 0
    first, table = files_of(results / "small"), (results / "small/table.md").read_bytes()
    assert len(here) == 8
    assert run_small(results).code == 0
    assert len(here) == 8, "a command ran again"
    after = files_of(results / "small")
    reports = {results / "small" / name for name in ("table.md", "curves.png", "index.html")}
    assert first.keys() == after.keys()
    assert {path for path in first if first[path] != after[path]} <= reports
    assert (results / "small/table.md").read_bytes() == table
    # The page holds everything: no address, no file beside it, no script.
    page = (results / "small/index.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert set(re.findall(r'(?:src|href)="([^"]{0,22})', page)) == {"data:image/png;base64,"}
    assert page.count("<img") == 3 and page.count("python train.py") == 2
    record = json.loads((results / "small/digits-vanilla-seed0/run.json").read_text())
    assert record["flags"] == {"loss_type": "vanilla"} and len(record["commands"]) == 4
    # One output less: only its own step is done again.
    (results / "small/digits-vanilla-seed0/heldout.json").unlink()
    assert run_small(results).code == 0
    assert [words[1] for words in here[8:]] == ["evaluations.heldout"]
    # Begun runs are not mixed with other flags.
    said = run_small(results, "--max-steps", 8)
    assert said.code == 2 and "was begun with" in said.err and said.err.count("\n") == 1


@pytest.mark.slow
def test_killed_and_run_again_it_gives_the_same_table(results, here, tmp_path):
    """The undisturbed sweep runs in this process; the other one starts from an empty folder, in
    processes of its own, and all of them are killed at some moment."""
    assert run_small(results).code == 0
    undisturbed, real = results / "small", tmp_path / "killed"
    words = [sys.executable, "-m", "tests.experiments.small", *SHORT, "--results", real]
    words = [str(word) for word in [*words, *TINY]]
    moment = random.uniform(3, 25)
    with pytest.raises(subprocess.TimeoutExpired):
        launched(words, timeout=moment)
    done = launched(words, timeout=250)
    assert done == 0, f"after being killed at {moment:.1f} s"
    for name in ("table.md", "curves.png"):
        same = (real / "small" / name).read_bytes() == (undisturbed / name).read_bytes()
        assert same, f"{name} differs after being killed at {moment:.1f} s"


def launched(words, *, timeout):
    """Exit code of a process group, killed as a whole when the time is over."""
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True) as process:
        try:
            return process.wait(timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_a_failing_run_does_not_stop_the_others(results, here, monkeypatch):
    broken = runs.Run("broken", {"loss_type": "layer_sync", "encoder_depth": 7})

    def with_broken(setting):
        return [broken, *small.runs(setting)]

    failing = dataclasses.replace(small.SMALL, runs=with_broken)
    monkeypatch.setattr(small, "main", small.partial(small.sweep, failing))
    done = run_small(results)
    assert done.code == 1 and "2 of 3 runs are finished" in done.out
    assert "digits-broken-seed0: train ended with exit code 2" in done.err
    assert "pair 7:2 does not fit this model of 2 blocks" in done.err
    assert (results / "small/digits-layer_sync-seed0/samples.score.json").exists()
    # A mistyped flag can be put right: the run had not begun.
    broken.flags["encoder_depth"] = 1
    assert run_small(results).code == 0


def test_a_successor_waits_for_what_a_killed_sweep_left_alive(tmp_path, here, capsys):
    plan = runs.Planned(tmp_path, (), {"commands": []})
    with runs.only_one(tmp_path / "lock"):
        other = threading.Thread(target=plan.execute)
        other.start()
        time.sleep(0.3)
        assert other.is_alive() and not plan.path.exists()
    other.join(10)
    assert plan.path.exists() and "waiting for it" in capsys.readouterr().out


def test_training_without_a_checkpoint_starts_again_under_its_number(tmp_path):
    for number, name in enumerate(("begun", "stillborn")):
        (tmp_path / f"{number:03d}-SiT-{name}" / "checkpoints").mkdir(parents=True)
    (tmp_path / "000-SiT-begun/checkpoints/0000004.pt").touch()
    runs.discard_stillborn(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["000-SiT-begun"]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--preset", "t99"], "unknown preset 't99'"),
        (["--preset", "digits", "--max-steps", 0], "--max-steps 0: give 1 or more"),
        (["--preset", "digits", "--seeds", 1, 1], "--seeds takes one number or more"),
        (["--preset", "digits", "--slurm", "gpu"], "--slurm gpu: write NAME=VALUE"),
        (["--preset", "t6"], "--reference VIRTUAL_imagenet256_labeled.npz: there is no such file"),
        (["--preset", "t7"], "i3d_torchscript.pt, which FVD needs, is not in the current folder"),
        (
            ["--preset", "digits", "--rows", "weight-9"],
            "--rows weight-9: choose from vanilla,",
        ),
        (["--preset", "digits", "--gpus-per-run", 99], "--gpus-per-run 99, but there are"),
        (["--preset", "digits", "--", "--epochs", 2], "the length of a sweep's runs by --max"),
    ],
)
def test_bad_flags_are_one_sentence(results, flags, sentence):
    assert sentence in refused("experiments.table6", "--results", results, *flags)


def test_slurm_without_submitit_is_one_sentence(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    said = refused("tests.experiments.small", "--slurm", "partition=gpu", "--results", results)
    assert "--slurm needs submitit" in said


def test_runs_are_dealt_out_to_gpus(monkeypatch):
    from experiments import sweep

    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    flags = sweep.SweepFlags()
    assert sweep.gpu_groups(flags) == [["0"], ["1"], ["2"], ["3"]]
    pairs = dataclasses.replace(flags, gpus_per_run=2)
    assert sweep.gpu_groups(pairs) == [["0", "1"], ["2", "3"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,2,0")
    assert sweep.gpu_groups(pairs) == [["3", "1"], ["2", "0"]]
    assert sweep.gpu_groups(dataclasses.replace(flags, device="cpu")) == [[]]
    step = runs.Step("train", ["train.py", "--lr", "1"], ROOT)
    assert runs.executable(step) == [sys.executable, str(ROOT / "train.py"), "--lr", "1"]
    words = ["--preset", "t6", "--gpus-per-run", 2, "--dry-run", "--reference", "REF.npz"]
    said = succeed("experiments.table6", *words).out
    torchrun = "python -m torch.distributed.run --standalone --nproc_per_node=2 "
    assert f"{torchrun}train.py" in said and f"{torchrun}sample_ddp.py" in said


def test_some_rows_of_a_table_are_those_of_the_whole(results):
    words = ["--preset", "digits", "--dry-run", "--device", "cpu", "--results", results]
    table = succeed("experiments.table6", *words).out.splitlines()
    some = succeed("experiments.table6", *words, "--rows", "vanilla", "weight-0.5").out.splitlines()
    assert sum("train.py" in line for line in some) == 2 and set(some) < set(table)


def test_rows_that_were_picked_are_not_averaged_as_random_ones():
    drawn = [runs.Run("vanilla", {}), *(runs.Run(f"pair-{n}", {}, pool="drawn") for n in range(3))]
    assert [row.pool for _, row in chosen_rows(drawn, ())] == [None, "drawn", "drawn", "drawn"]
    assert chosen_rows(drawn, ("pair-1",)) == [(2, runs.Run("pair-1", {}))]


def test_a_row_that_cannot_train_is_refused_before_the_others_do(results, here):
    words = [*SHORT, "--results", results, "--", "--encoder-depth", 2]
    said = refused("tests.experiments.small", *words)
    assert "--encoder-depth has no meaning for --loss-type vanilla" in said and not here


def test_a_row_whose_micro_batches_are_too_small_is_refused_before_the_others_do(results):
    """The Dispersive loss compares videos, and 160 of them over 8 processes x 20 are one each."""
    words = ["--preset", "wan-ssv2", "--gpus-per-run", 8, "--results", results, "--dry-run", "--"]
    said = refused("experiments.table7", *words, "--grad-accum", 20)
    assert "--loss-type dispersive compares images: a micro-batch needs 2 or more" in said
    said = refused("experiments.table7", *words, "--grad-accum", 3)
    assert "--global-batch-size 160 is not divisible by 8 processes x 3 micro-batches" in said
    said = succeed("experiments.table7", *words, "--grad-accum", 2).out
    assert all(f"--loss-type {row}" in said for row in ("vanilla", "dispersive", "layer_sync"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_command_of_every_script_has_flags_that_exist(name, results, monkeypatch):
    (experiment,) = [e for e in vars(SCRIPTS[name]).values() if isinstance(e, Experiment)]
    presets = [*experiment.presets, "digits"]
    said = succeed(f"experiments.{name}", "--preset", *presets, "--results", results, "--dry-run")
    assert not (results / experiment.name).exists()
    commands = [shlex.split(line) for line in said.out.splitlines()]
    lengths = set()
    for words in without_seeds_and_paths(commands):
        monkeypatch.setattr(sys, "argv", ["", *words[1:]])
        lengths.add(PARSERS[words[0]](words[1:]))
    assert {PRESETS[preset]["max_steps"] for preset in presets} <= lengths


def test_the_papers_250_steps_of_heun_are_read_in_both_ways_where_250_are_taken(
    results, monkeypatch
):
    words = ["--preset", "t1-b", "digits", "--rows", "vanilla", "--results", results, "--dry-run"]
    said = succeed("experiments.table1", *words).out
    found = {}
    for words in (shlex.split(line) for line in said.splitlines() if "sample_ddp.py" in line):
        monkeypatch.setattr(sys, "argv", words[1:])
        flags = config.parse_sampling(sample_ddp.MODES, PROTOCOLS)
        preset = Path(flags.sample_dir).name.split("-vanilla")[0]
        found[preset, flags.name] = flags.num_sampling_steps
    digits = found.pop(("digits", "samples"))
    assert found == {("t1-b", "samples"): 250, ("t1-b", "250-calls"): 126} and digits < 126


@pytest.mark.parametrize(
    ("preset", "weight", "told"),
    [
        ("t1-b", 0.3, {"smooth_l1", "relation"}),
        ("wan-ssv2", 0.5, {"cosine", "centred", "spatial", "smooth_l1", "relation"}),
    ],
)
def test_similarities_are_compared_at_one_weight(results, preset, weight, told):
    """Without the flag some have their own or none, and the others the preset's."""
    words = ["--preset", preset, "--results", results, "--dry-run"]
    said = succeed("experiments.similarities", *words).out
    weights = {}
    for words in (shlex.split(line) for line in said.splitlines() if "train.py" in line):
        flags = config.parse(config.TrainConfig, PRESETS, words[2:])
        weights[flags.similarity, flags.loss_type] = flags.reg_weight
        if flags.loss_type != "vanilla":
            assert ("--reg-weight" in words) == (flags.similarity in told)
    assert weights.pop(("cosine", "vanilla")) is None
    assert len(weights) == 5 and set(weights.values()) == {weight}


def test_networks_of_others_are_sampled_by_their_own_protocols(results):
    said = succeed("experiments.table7", "--results", results, "--dry-run").out
    drawn = [line for line in said.splitlines() if "sample_ddp.py" in line]
    protocols = set()
    for words in map(shlex.split, drawn):
        run = Path(words[words.index("--ckpt") + 1]).parent.parent.name
        protocols.add((run.split("-")[1], words[words.index("--protocol") + 1]))
    assert protocols == {("SiT", "paper-ode"), ("Wan2.1", "wan"), ("CogVideoX", "cogvideox")}


def without_seeds_and_paths(commands):
    """The commands that differ in more than where they write; parsing takes a while."""
    seen = {}
    for words in commands:
        words = words[2:] if words[1] == "-m" else words[1:]
        seen.setdefault(tuple(w for w in words if "seed0" not in w), words)
    return seen.values()


def parse_train(words):
    return config.parse(config.TrainConfig, PRESETS, list(words)).max_steps


def parse_evaluation(words):
    if words[0] == "train-classifier":
        return tyro.cli(images.ClassifierFlags, args=words[1:]).dataset_name
    return tyro.cli(images.ScoreFlags, args=words).extractor


PARSERS = {
    "train.py": parse_train,
    "sample_ddp.py": lambda words: config.parse_sampling(sample_ddp.MODES, PROTOCOLS).name,
    "evaluations.images": parse_evaluation,
    "evaluations.motion": lambda words: tyro.cli(motion.Flags, args=words).seed,
    "methods.features": lambda words: tyro.cli(features.Flags, args=words).extractor,
    "evaluations.heldout": lambda words: tyro.cli(heldout.Flags, args=words).seed,
    "evaluations.progress": lambda words: tyro.cli(progress.Flags, args=words).seed,
}
