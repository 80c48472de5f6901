"""Before any sweep: can this setting show a gain at all?

python -m experiments.gate --preset fashion-mnist-s --max-steps 1000 --seeds 0 1 2
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import domains
from domains.codecs import PIXELS
from evaluations.features import Study, StudyFlags
from evaluations.metrics import mean_interval
from evaluations.suggest_pairs import WORTH, Pair, measured, qualities
from layersync import admissible_pairs
from runtime import checkpoint, distributed
from runtime.entry import run
from runtime.errors import InputError
from runtime.files import write_json
from runtime.text import columns

from . import table
from .rows import layer_sync, vanilla
from .runs import Run, Step
from .scoring import data_words
from .sweep import Experiment, Setting, sweep

NOISE = 0.3  # share of noise in what the probed features see
PROBED = 6000  # training images at most: two thirds to fit a probe to, the rest to test it on
LEAST_SEEDS = 3  # an interval over two is twelve of their deviations wide
GAIN = 0.01  # of vanilla's loss, that a setting has to be able to show


def runs(setting: Setting) -> list[Run]:
    quarter = {"ckpt_every": max(1, setting.steps // 4), "keep_last": 0}
    rows = [vanilla(), layer_sync(), positive_control(setting)]
    return [replace(row, flags=row.flags | quarter) for row in rows]


def positive_control(setting: Setting) -> Run:
    """What should help if any alignment does: the student is pulled, from the first step on,
    towards features of the network that the samples are scored by, which was trained on classes."""
    out = setting.results / f"features-{setting.dataset}"
    words = ["-m", "methods.features", setting.dataset, "--extractor", setting.extractor]
    words += [*data_words(setting.samples_path), "--out", str(out)]
    target = (setting.student, str(out), 1.0)
    flags = {"loss_type": "external", "targets": repr([target]), "reg_weight": 0.5}
    return Run("positive-control", flags, needs=(Step(out.name, words, out / "features.json"),))


def verdict(folders: list[Path], out: Path) -> None:
    """gate.json: by preset, the probes of the vanilla runs' blocks, the held-out losses, and what
    follows; printed too."""
    results = list(zip(folders, map(table.read_run, folders), strict=True))
    found = {}
    for preset in dict.fromkeys(result.record["preset"] for _, result in results):
        own = [pair for pair in results if pair[1].record["preset"] == preset]
        found[preset] = judged(preset, own)
        print(as_text(preset, found[preset]))
    write_json(out / "gate.json", found)


def judged(preset: str, results: list[tuple[Path, table.Result]]) -> dict[str, Any]:
    losses: dict[str, dict[int, float]] = {}
    for _, result in results:
        name, seed = result.record["name"].removeprefix(f"{preset}-"), result.record["seed"]
        loss = result.scores[f"{table.HELD_OUT}, model"]
        losses.setdefault(name, {})[seed] = loss
    base = losses.get("vanilla", {})
    over = {
        name: mean_interval([one[seed] - base[seed] for seed in one])._asdict()
        for name, one in losses.items()
        if one.keys() <= base.keys()
    }
    probes = [
        probes_of(folder, result.record["pair"])
        for folder, result in results
        if result.record["name"].endswith("-vanilla")
    ]
    pair = results[0][1].record["pair"]
    gap, best = (gap_of(*pair, probes), widest(probes)) if probes else (None, None)
    return {
        "held_out_loss": losses, "minus_vanilla": over, "probes": probes,
        "has_gap": is_wide(gap, len(probes)),
        "gap": gap and gap._asdict(), "widest": best and best._asdict(),
        "positive_control_helps": helps(over.get("positive-control"), base),
    }  # fmt: skip


def gap_of(student: int, teacher: int, probes: Sequence[dict[str, Any]]) -> Pair:
    """How much better the teacher reads the classes than the student: the mean over seeds, and half
    of its 95 % interval. Both the seeds and the tested images, which every seed has the same of,
    leave it open."""
    of_seeds = [measured(student, teacher, one["blocks"], one["tested"]) for one in probes]
    over = mean_interval([one.gap for one in of_seeds])
    by_seeds = 0.0 if over.high is None else over.high - over.mean
    by_images = sum(one.error for one in of_seeds) / len(of_seeds)
    return Pair(student, teacher, over.mean, math.hypot(by_seeds, by_images))


def widest(probes: Sequence[dict[str, Any]]) -> Pair | None:
    """Of the pairs that section 3.4 allows, the one with most to hand on; none of two blocks."""
    allowed = admissible_pairs(len(probes[0]["blocks"]))
    return max((gap_of(*one, probes) for one in allowed), key=lambda one: one.gap, default=None)


def is_wide(gap: Pair | None, seeds: int) -> bool | None:
    """Whether a gap is `WORTH` or more. None: not decided, by so few images and seeds."""
    if gap is None or seeds < LEAST_SEEDS or abs(gap.gap - WORTH) < gap.error:
        return None
    return gap.gap > WORTH


def helps(over: dict[str, Any] | None, vanilla: dict[int, float]) -> bool | None:
    """Whether the loss is below vanilla's on all of the interval over seeds. None: not decided,
    since the interval holds nothing and a gain of `GAIN`, or is of two seeds."""
    if over is None or over["n"] < LEAST_SEEDS:
        return None
    if over["high"] < 0:
        return True
    return False if over["low"] > -GAIN * sum(vanilla.values()) / len(vanilla) else None


def as_text(preset: str, found: dict[str, Any]) -> str:
    rows = []
    for name, losses in found["held_out_loss"].items():
        over = found["minus_vanilla"].get(name)
        cells = [f"{loss:.5f}" for loss in losses.values()]
        interval = "-"
        if over and over["low"] is not None and name != "vanilla":
            interval = f"{over['low']:+.5f} to {over['high']:+.5f}"
        rows.append([name, " ".join(cells), f"{over['mean']:+.5f}" if over else "-", interval])
    head = ["", "held-out loss by seed", "minus vanilla", "95 % interval"]
    lines = [f"{preset}, raw weights", columns(head, rows)]
    for probe in found["probes"]:
        blocks = " ".join(f"{value:.3f}" for value in probe["blocks"])
        gap = probe["teacher"] - probe["student"]
        lines.append(f"probes of {probe['run']} at step {probe['step']}: {blocks}; gap {gap:+.3f}")
    for name, key in (("the pair", "gap"), ("the widest gap of allowed pairs", "widest")):
        if one := found[key]:
            value = f"{one['gap']:+.3f} ± {one['error']:.3f}"
            lines.append(f"{name}, {one['student']}:{one['teacher']}: {value}")
    control, gap = found["positive_control_helps"], found["has_gap"]
    said = {True: "yes", False: "no", None: "not decided"}
    return "\n".join(
        [
            *lines,
            f"teacher better than student by {WORTH:.0%} or more, beyond the spread over seeds "
            f"({LEAST_SEEDS} or more) and images: {said[gap]}",
            f"aligning to a classifier helps, beyond the spread over seeds: {said[control]}",
            verdict_on(gap, control),
        ]
    )


def verdict_on(gap: bool | None, control: bool | None) -> str:
    if gap and control:
        return "the gate is open"
    if gap is False or control is False:
        return "the gate is shut: this pair cannot be expected to show a gain here"
    return "the gate is undecided"


def probes_of(folder: Path, pair: tuple[int, int]) -> dict[str, Any]:
    """Accuracy of a ridge probe on every block's mean token, at a quarter of a run's training; on
    the CPU if the run was, else on a GPU where there is one: Slurm's runs had theirs elsewhere."""
    (trained,) = checkpoint.runs(folder)
    path = checkpoint.files_of(trained)[0]
    args = checkpoint.read(path).args
    flags = StudyFlags(
        ckpt=str(path), data=args["dataset_name"], data_path=args["data_path"], noise=NOISE,
        weights="model",  # the EMA of a short run is still near the start
        num_workers=0, device="cpu" if args["device"] == "cpu" else "auto",
    )  # fmt: skip
    ranks = distributed.start_alone("experiments.gate", flags.device)
    blocks, tested = qualities(Study(flags, ranks), PROBED)
    student, teacher = pair
    return {
        "run": folder.name, "step": int(path.stem), "blocks": blocks, "tested": tested,
        "student": blocks[student - 1], "teacher": blocks[teacher - 1],
    }  # fmt: skip


def check_labeled(setting: Setting) -> None:
    """
    Raises:
        InputError: data without a held-out part, or without classes that a probe could read.
    """
    domain = domains.build(setting.dataset, vae=PIXELS, data_path=setting.samples_path)
    domain.held_out_set()
    if domain.num_classes < 2:
        raise InputError(f"probes read classes, and {domain.name} has none")


def check_samples(setting: Setting) -> None:
    """
    Raises:
        InputError: as above, or stored latents, whose samples no classifier sees.
    """
    if domains.stored_latents(setting.data_path):
        raise InputError(
            f"--data-path {setting.data_path} holds latents, and the gate looks at samples: give "
            "the folder of those"
        )
    check_labeled(setting)


GATE = Experiment(
    "gate", "Gate: is there anything to hand on?", ("digits", "fashion-mnist-s"), runs,
    check=check_samples, finish=verdict,
)  # fmt: skip
main = partial(sweep, GATE)

if __name__ == "__main__":
    run(main)
