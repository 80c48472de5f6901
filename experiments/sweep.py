"""Sweeps: the runs of a table for every preset and seed, on local GPUs, a CPU, or Slurm.

python -m experiments.table6 --preset digits --seeds 0 1 2
"""

import dataclasses
import os
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro

from layersync import default_pair, default_weight
from methods import check_flags
from methods.layer_sync import published_weight
from models import KINDS, architecture
from runtime import config as flags_of
from runtime.checkpoint import run_label
from runtime.config import TrainConfig, at_least
from runtime.ema import slow_ema
from runtime.entry import asked_of_user, speaks
from runtime.errors import InputError
from runtime.presets import PRESETS
from training import check_batch

from . import table
from .runs import (
    LAST_LINES,
    PARENT,
    Failure,
    Planned,
    Run,
    Step,
    as_words,
    only_one,
    perform,
    typed,
    under_torchrun,
)  # fmt: skip
from .scoring import PAPER, PROTOCOL_OF, SCORINGS, Scoring, data_words


@dataclass(frozen=True)
class SweepFlags:
    """Run what a table or figure of the paper needs; run it again to go on where it stopped.

    What follows a lone -- are flags of train.py for every run: -- --data-path LATENTS --precision
    bf16.
    """

    preset: tuple[str, ...] = ()  # rows of runtime/presets.py; none: the paper's own
    seeds: tuple[int, ...] = (0,)  # every run is repeated for each
    rows: tuple[str, ...] = ()  # of the table, by name; none: all
    max_steps: int | None = None  # length of the runs; None: the preset's
    results: Path = Path("results/experiments")  # runs lie in RESULTS/EXPERIMENT/NAME-seedK
    samples: int | None = None  # images per run that are scored; None: 50,000, fewer of small data
    per_proc_batch_size: int | None = None  # of sampling; None: 50, or more of small images
    # Real samples, the folder of the data set where --data-path holds latents, or T2M's folder;
    # None: those of the data set's kind.
    reference: str | None = None
    jobs: int | None = None  # runs at the same time; None: as many as the GPUs allow, 1 on a CPU
    gpus_per_run: int = 1  # train and sample under torchrun on so many
    slurm: tuple[str, ...] = ()  # submit to Slurm with these of sbatch's: partition=gpu time=1440
    device: Literal["auto", "cpu", "cuda"] = "auto"  # of every command
    dry_run: bool = False  # print the commands and stop


class Setting(NamedTuple):
    """What a table may build its rows from: a preset, resolved."""

    preset: str
    dataset: str
    data_path: str | None
    samples_path: str | None  # --reference, where that is the samples' folder; else data_path
    results: Path
    extractor: str  # that samples are scored by
    depth: int
    steps: int
    student: int
    teacher: int
    similarity: str
    weight: float
    labels: bool  # whether classes are told to the model
    hidden_size: int | None  # None: not to be chosen
    num_heads: int | None

    @property
    def tenth(self) -> int:
        """Of the run, in steps."""
        return max(1, self.steps // 10)


@dataclass(frozen=True)
class Experiment:
    """A table or figure: its runs under a preset, and what is made of them."""

    name: str  # of its folder
    title: str  # what it shows, for the report
    presets: tuple[str, ...]  # the paper's
    runs: Callable[[Setting], Sequence[Run]]  # the first one is the baseline of the others
    protocol: str = "paper-ode"  # of sample_ddp.py, but of networks with their own
    # Ways of sampling every trained model: name -> more flags of sample_ddp.py.
    samplings: Callable[[Setting], dict[str, tuple[str, ...]]] = lambda setting: {"samples": ()}
    # What else is measured of every trained run: name of the JSON -> the command, which takes the
    # run's folder and --out.
    measures: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # Refuses data that it can make nothing of, before days of training.
    check: Callable[[Setting], None] | None = None
    finish: Callable[[list[Path], Path], None] | None = None  # of the run folders, into a folder


def sweep(experiment: Experiment) -> None:
    """The command of a table or figure: its flags in, its runs and their report out."""
    argv = sys.argv[1:]
    cut = argv.index("--") if "--" in argv else len(argv)
    flags = tyro.cli(SweepFlags, args=argv[:cut], console_outputs=speaks())
    check(flags)
    folder = flags.results / experiment.name
    chosen = flags.preset or experiment.presets
    for name in chosen:
        flags_of.known(name, PRESETS, "preset")
    preparations: dict[Path, Step] = {}
    runs: list[Planned] = []
    notes: list[str] = []
    settings: list[Setting] = []
    for preset in chosen:
        shared = shared_words(preset, flags, argv[cut + 1 :])
        config = flags_of.parse(TrainConfig, PRESETS, shared)
        if config.max_steps is None:
            raise InputError("--epochs: give the length of a sweep's runs by --max-steps")
        scoring, prepared = scoring_of(config, flags)
        preparations |= {step.output: step for step in prepared}
        setting = setting_of(preset, config, scoring, flags.results)
        if note := slow_ema(config.ema_decay, config.max_steps):
            notes.append(f"{note} (behind a lone --)")
        settings.append(setting)
        plan = Plan(experiment, setting, config, scoring, flags, shared)
        rows = chosen_rows(experiment.runs(setting), flags.rows)
        for step in (step for _, row in rows for step in row.needs):
            preparations[step.output] = step._replace(words=[*step.words, *device_words(flags)])
        for seed in flags.seeds:  # a sweep that is stopped leaves whole pairs of equal seed
            for index, row in rows:
                runs.append(planned(plan, dataclasses.replace(row, seed=seed), index))
    if flags.dry_run:
        steps = [*preparations.values(), *(step for run in runs for step in run.steps)]
        return print("\n".join(typed(step.words) for step in steps))
    for run in runs:
        run.check()
    if experiment.check and not all(run.finished for run in runs):
        for setting in settings:
            experiment.check(setting)
    print("\n".join(dict.fromkeys(notes)), end="\n" if notes else "", flush=True)
    failures = prepare(list(preparations.values()), flags.results)
    if not failures:
        failures = (on_slurm if flags.slurm else locally)(runs, flags, folder)
    finished = [run.folder for run in runs if run.finished]
    if finished:
        table.write(table.read(finished), folder, experiment.title)
        if experiment.finish:
            experiment.finish(finished, folder)
        print(f"{len(finished)} of {len(runs)} runs are finished: {folder / 'index.html'}")
    for failure in failures:
        lines = "\n".join(f"    {line}" for line in failure.last_lines)
        print(f"error: {failure.what} ({failure.log}):\n{lines}", file=sys.stderr)
    if failures:
        sys.exit(1)


def check(flags: SweepFlags) -> None:
    at_least(flags, max_steps=1, samples=1, per_proc_batch_size=1, jobs=1, gpus_per_run=1)
    if not flags.seeds or len(set(flags.seeds)) < len(flags.seeds):
        raise InputError("--seeds takes one number or more, each once")
    for word in flags.slurm:
        if "=" not in word:
            raise InputError(f"--slurm {word}: write NAME=VALUE as sbatch has it, partition=gpu")
    if not flags.slurm and not flags.dry_run:
        gpu_groups(flags)  # refused now rather than after what all runs need is made


def chosen_rows(rows: Sequence[Run], names: Sequence[str]) -> list[tuple[int, Run]]:
    """With their numbers in the whole table; those that were picked are nobody's random pairs.

    Raises:
        InputError: there is no such row.
    """
    there = [row.name for row in rows]
    if unknown := [name for name in names if name not in there]:
        raise InputError(f"--rows {unknown[0]}: choose from {', '.join(there)}")
    if not names:
        return list(enumerate(rows))
    picked = [(index, row) for index, row in enumerate(rows) if row.name in names]
    return [(index, dataclasses.replace(row, pool=None)) for index, row in picked]


def shared_words(preset: str, flags: SweepFlags, more: list[str]) -> list[str]:
    """The flags of train.py that all runs of a preset share."""
    length = [] if flags.max_steps is None else ["--max-steps", str(flags.max_steps)]
    return ["--preset", preset, *more, *length, *device_words(flags)]


def device_words(flags: SweepFlags) -> list[str]:
    return [] if flags.device == "auto" else ["--device", flags.device]


def setting_of(preset: str, config: TrainConfig, scoring: Scoring, results: Path) -> Setting:
    with asked_of_user():
        size = size_of(config)
        depth = size["depth"]
        student, teacher = default_pair(depth)
    return Setting(
        preset, config.dataset_name, config.data_path, scoring.samples_folder(config), results,
        scoring.extractor, depth, config.max_steps, config.encoder_depth or student,
        config.gt_encoder_depth or teacher, config.similarity,
        (published_weight(config.similarity, depth) or default_weight(depth))
        if config.reg_weight is None else config.reg_weight,
        config.num_classes != 0, size.get("hidden_size"), size.get("num_heads"),
    )  # fmt: skip


def size_of(config: TrainConfig) -> dict[str, Any]:
    """
    Raises:
        ValueError: an unknown --model, or one that has not what is asked for.
    """
    asked = {name: getattr(config, name) for name in ("depth", "hidden_size", "num_heads")}
    found = architecture(config.model, **asked)
    return {"depth": KINDS[config.model].depth} if config.model in KINDS else found


def scoring_of(config: TrainConfig, flags: SweepFlags) -> tuple[Scoring, list[Step]]:
    """How this data set is scored, and what has to be made once before.

    Raises:
        InputError: the reference is a file or a folder that is not there, said before days of
            training.
    """
    scoring = SCORINGS.get(config.dataset_name, PAPER)
    scoring = dataclasses.replace(
        scoring,
        samples=flags.samples or scoring.samples,
        batch=flags.per_proc_batch_size or scoring.batch,
    )
    if flags.reference:
        scoring = scoring.against(flags.reference)
    if not flags.dry_run:
        scoring.check(config)
    return scoring.prepared(config, flags.results)


@dataclass(frozen=True)
class Plan:
    """What all runs of an experiment have in common under one preset."""

    experiment: Experiment
    setting: Setting
    config: TrainConfig
    scoring: Scoring
    flags: SweepFlags
    shared: list[str]  # flags of train.py

    def name(self, run: str) -> str:
        return f"{self.setting.preset}-{run}"

    def length(self, run: Run) -> int:
        """In steps."""
        return run.flags.get("max_steps", self.config.max_steps)


def planned(plan: Plan, run: Run, index: int) -> Planned:
    """A run's folder, commands and record.

    Args:
        index: the row of the table.
    """
    label = f"{plan.name(run.name)}-seed{run.seed}"
    folder = plan.flags.results / plan.experiment.name / label
    trained = folder / f"000-{run_label(plan.config.model, label)}" / "checkpoints"
    ckpt = trained / f"{plan.length(run):07d}.pt"
    steps = [*training_steps(plan, run, folder, ckpt), *scoring_steps(plan, run, folder, ckpt)]
    return Planned(folder, tuple(steps), record_of(plan, run, index, steps))


def training_steps(plan: Plan, run: Run, folder: Path, ckpt: Path) -> Iterator[Step]:
    """The run's training, after that of its parent, if it has one."""

    def train_words(flags: dict[str, Any], results: Path) -> list[str]:
        words = ["train.py", *plan.shared, *as_words(flags), "--global-seed", str(run.seed)]
        words += ["--results-dir", str(results), "--wandb-run-name", folder.name]
        return [*words, "--resume", "auto"]

    gpus, origin = plan.flags.gpus_per_run, {}
    if run.parent is not None:
        last = f"{plan.config.max_steps:07d}"
        parent = folder / PARENT / ckpt.relative_to(folder).with_stem(last)
        yield Step("parent", under_torchrun(train_words(run.parent, folder / PARENT), gpus), parent)
        origin = {"fine_tune": True, "ckpt": str(parent)}
    train = train_words(run.flags | origin, folder)
    resolved = flags_of.parse(TrainConfig, PRESETS, train[1:])
    check_flags(resolved)  # before days of the other rows
    check_batch(resolved, gpus)
    yield Step("train", under_torchrun(train, gpus), ckpt)


def scoring_steps(plan: Plan, run: Run, folder: Path, ckpt: Path) -> Iterator[Step]:
    """What is measured of the trained run: held-out loss, samples and their scores, and more."""
    experiment, setting, flags = plan.experiment, plan.setting, plan.flags
    common, real = (
        [*data_words(path), *device_words(flags)]
        for path in (setting.data_path, setting.samples_path)
    )
    out = folder / "heldout.json"
    heldout = ["-m", "evaluations.heldout", str(ckpt), "--out", str(out), *common]
    yield Step("heldout", heldout, out)
    for way, own in experiment.samplings(setting).items():
        protocol = PROTOCOL_OF.get(plan.config.model, experiment.protocol)
        sample = ["sample_ddp.py", "--protocol", protocol, "--ckpt", str(ckpt), *own]
        sample += [*plan.scoring.sample_words(), "--global-seed", str(run.seed)]
        sample += ["--sample-dir", str(folder), "--name", way, *common]
        score = plan.scoring.score_words(folder / f"{way}.npz", plan.config)
        score = [*score, *device_words(flags)]
        yield Step(way, under_torchrun(sample, flags.gpus_per_run), folder / f"{way}.json")
        yield Step(f"{way}.score", score, folder / f"{way}.score.json")
    for measure, words in experiment.measures.items():
        out = folder / f"{measure}.json"
        yield Step(measure, [*words, str(ckpt.parent.parent), "--out", str(out), *real], out)


def record_of(plan: Plan, run: Run, index: int, steps: Sequence[Step]) -> dict[str, Any]:
    """What run.json holds."""
    return {
        "experiment": plan.experiment.name, "reproduces": plan.experiment.title,
        "preset": plan.setting.preset, "name": plan.name(run.name), "index": index,
        "seed": run.seed, "flags": run.flags, "max_steps": plan.length(run), "paper": run.paper,
        "pool": run.pool, "baseline": run.baseline and plan.name(run.baseline),
        "pair": [plan.setting.student, plan.setting.teacher],
        "commands": [typed(step.words) for step in steps],
    }  # fmt: skip


def prepare(steps: list[Step], results: Path) -> list[Failure]:
    """Make what all runs need, one step after the other."""
    if all(step.output.exists() for step in steps):
        return []
    results.mkdir(parents=True, exist_ok=True)
    with only_one(results / "lock") as lock:
        done = [perform(step, results, lock, ()) for step in steps]
    return [failure for failure in done if failure]


def locally(runs: list[Planned], flags: SweepFlags, folder: Path) -> list[Failure]:
    """Run on this machine: one run per GPU, or per --gpus-per-run of them; one on a CPU."""
    places: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    groups = gpu_groups(flags)
    jobs = flags.jobs or len(groups)
    for number in range(jobs):
        places.put(groups[number % len(groups)])

    def execute(run: Planned) -> Failure | None:
        place = places.get()
        try:
            return run.execute(place)
        finally:
            places.put(place)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return [failure for failure in pool.map(execute, runs) if failure]
        except BaseException:  # Ctrl-C ends the commands that run; no other may start
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def gpu_groups(flags: SweepFlags) -> list[list[str]]:
    """The GPUs of each place where a run can be; a CPU is one place without any.

    Raises:
        InputError: a run wants more GPUs than there are.
    """
    count = 0 if flags.device == "cpu" else torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    size = flags.gpus_per_run
    if size > max(count, 1):
        raise InputError(f"--gpus-per-run {size}, but there are {count} GPUs here")
    return [visible[first : first + size] for first in range(0, count - size + 1, size)] or [[]]


def on_slurm(runs: list[Planned], flags: SweepFlags, folder: Path) -> list[Failure]:
    """One job per run that is not finished; waits for all of them."""
    try:
        import submitit
    except ImportError as error:
        raise InputError("--slurm needs submitit: pip install 'layersync[slurm]'") from error
    options = dict(word.split("=", 1) for word in flags.slurm)
    try:
        executor = submitit.AutoExecutor(folder / "slurm", cluster="slurm")
        executor.update_parameters(
            name=folder.name, **{f"slurm_{name}": value for name, value in options.items()}
        )
    except (RuntimeError, ValueError, NameError) as error:
        sentence = str(error).split("\n")[0]
        raise InputError(f"--slurm {' '.join(flags.slurm)}: {sentence}") from error
    left = [run for run in runs if not run.finished]
    with executor.batch():
        jobs = [executor.submit(run.execute) for run in left]
    print(f"{len(jobs)} jobs: {', '.join(job.job_id for job in jobs)}", flush=True)
    return [failure for run, job in zip(left, jobs, strict=True) if (failure := ended(run, job))]


def ended(run: Planned, job: Any) -> Failure | None:
    """What a job of submitit came to: the run's own failure, or that of the job."""
    error = job.exception()
    if error is None:
        return job.result()
    lines = str(error).splitlines()[-LAST_LINES:]
    return Failure(f"{run.folder}: Slurm job {job.job_id} failed", job.paths.stderr, lines)
