"""Before any sweep: can this setting show a gain at all?

python -m experiments.gate --preset fashion-mnist-s --max-steps 1000 --seeds 0 1
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import domains
from domains import DataSet, Domain, Draws
from domains.codecs import PIXELS
from evaluations.metrics import mean_interval
from runtime import checkpoint
from runtime.config import SampleFlags
from runtime.entry import run
from runtime.errors import InputError
from runtime.files import write_json
from runtime.random import generator
from runtime.text import columns
from sample import Opened, open_checkpoint

from . import table
from .rows import layer_sync, vanilla
from .runs import Run, Step
from .sweep import Experiment, Setting, classifier_file, sweep

NOISE = 0.3  # share of noise in what the probed features see
PROBED = 3000, 2000  # images that a probe is fitted to and tested on, at most
RIDGE = 1e-2  # times the number of images
LEAST_GAP = 0.05  # of the teacher's probe over the student's, at a quarter of the training


def features_folder(setting: Setting) -> Path:
    return setting.results / f"features-{setting.dataset}"


def runs(setting: Setting) -> list[Run]:
    quarter = {"ckpt_every": max(1, setting.steps // 4), "keep_last": 0}
    target = (setting.student, str(features_folder(setting)), 1.0)
    control = {"loss_type": "external", "targets": repr([target]), "reg_weight": 0.5}
    rows = [vanilla(), layer_sync(), Run("positive-control", control)]
    return [Run(row.name, row.flags | quarter) for row in rows]


def prepare(setting: Setting) -> list[Step]:
    """Features of the classifier that the samples are scored by, too."""
    check_labeled(domains.build(setting.dataset, vae=PIXELS, data_path=setting.data_path))
    out = features_folder(setting)
    extractor = f"classifier:{classifier_file(setting.results, setting.dataset)}"
    words = ["-m", "methods.features", setting.dataset, "--extractor", extractor]
    if setting.data_path:
        words += ["--data-path", setting.data_path]
    return [Step(out.name, [*words, "--out", str(out)], out / "features.json")]


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
        loss = result.scores[f"{table.HELD_OUT}, ema"]
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
    gaps = [probe["teacher"] - probe["student"] for probe in probes]
    has_gap = bool(gaps) and min(gaps) >= LEAST_GAP
    # One seed decides nothing; of several, the whole interval has to be below 0.
    high = over.get("positive-control", {}).get("high")
    helps = high is not None and high < 0
    return {
        "held_out_loss": losses, "minus_vanilla": over, "probes": probes, "has_gap": has_gap,
        "positive_control_helps": helps, "open": has_gap and helps,
    }  # fmt: skip


def as_text(preset: str, found: dict[str, Any]) -> str:
    rows = []
    for name, losses in found["held_out_loss"].items():
        cells = [f"{loss:.5f}" for loss in losses.values()]
        over = found["minus_vanilla"].get(name, {}).get("mean")
        rows.append([name, " ".join(cells), "-" if over is None else f"{over:+.5f}"])
    lines = [preset, columns(["", "held-out loss by seed", "minus vanilla"], rows)]
    for probe in found["probes"]:
        blocks = " ".join(f"{value:.3f}" for value in probe["blocks"])
        gap = probe["teacher"] - probe["student"]
        lines.append(f"probes of {probe['run']} at step {probe['step']}: {blocks}; gap {gap:+.3f}")
    said = {True: "yes", False: "no"}
    return "\n".join(
        [
            *lines,
            f"teacher better than student by {LEAST_GAP:.0%} or more: {said[found['has_gap']]}",
            f"aligning to a classifier helps, beyond the spread over seeds: "
            f"{said[found['positive_control_helps']]}",
            "the gate is open"
            if found["open"]
            else "the gate is shut: no self-alignment can be expected to show a gain here",
        ]
    )


def probes_of(folder: Path, pair: tuple[int, int]) -> dict[str, Any]:
    """Accuracy of a ridge probe on every block's mean token, at a quarter of a run's training."""
    (trained,) = checkpoint.runs(folder)
    path = checkpoint.files_of(trained)[0]
    opened = open_checkpoint(SampleFlags(ckpt=str(path)), torch.device("cpu"))
    labeled = labeled_domain(opened)
    sets = labeled.train_set(augment=False), labeled.held_out_set()
    train, test = (
        features_of(opened, images, count) for images, count in zip(sets, PROBED, strict=True)
    )
    blocks = [probe(train, test, block) for block in train[0]]
    student, teacher = pair
    return {
        "run": folder.name, "step": opened.checkpoint.step, "blocks": blocks,
        "student": blocks[student - 1], "teacher": blocks[teacher - 1],
    }  # fmt: skip


def labeled_domain(opened: Opened) -> Domain:
    """The images with their classes, also where the model was trained without.

    Raises:
        InputError: they have no classes, or no held-out part.
    """
    domain, args = opened.domain, opened.checkpoint.args
    labeled = domains.build(
        domain.name,
        image_size=domain.raw_shape[-1],
        vae=domain.vae,
        data_path=args.get("data_path"),
    )
    check_labeled(labeled)
    return labeled


def check_labeled(domain: Domain) -> None:
    domain.held_out_set()
    if domain.num_classes < 2:
        raise InputError(f"the gate reads classes, and {domain.name} has none")


@torch.no_grad()
def features_of(opened: Opened, images: DataSet, count: int) -> tuple[dict[int, Tensor], Tensor]:
    """Mean tokens of every block {number: (N, D)} and classes (N,); the null label, fixed noise."""
    model, domain = opened.network.model, opened.domain
    numbers = tuple(range(1, model.depth + 1))
    tokens: dict[int, list[Tensor]] = {number: [] for number in numbers}
    labels = []
    order = torch.randperm(len(images), generator=generator("cpu", "gate"))[:count].numpy()
    for first in range(0, len(order), 100):
        chosen = order[first : first + 100]
        batch = images.__getitems__(Draws.plain(chosen)).checked()
        random = generator("cpu", "gate", first)
        noise, posterior = (
            torch.randn(len(chosen), *domain.shape, generator=random) for _ in range(2)
        )
        x = domain.codec.to_input(domain.codec.encode(batch.raw), posterior)
        t = torch.full((len(chosen),), 1 - NOISE)
        x_t, _ = opened.transport.path.sample(x, noise, t)
        cond = model.null({"y": batch.y})
        blocks = model(x_t, t, **cond, return_blocks=numbers, only_blocks=True).blocks
        for number, features in blocks.items():
            tokens[number].append(features.float().mean(1))
        labels.append(batch.y)
    return {number: torch.cat(parts) for number, parts in tokens.items()}, torch.cat(labels)


def probe(
    train: tuple[dict[int, Tensor], Tensor], test: tuple[dict[int, Tensor], Tensor], block: int
) -> float:
    """The share of test images that a linear map, fitted to the training images, reads right."""
    (x, y), (x_test, y_test) = ((part[0][block].double(), part[1]) for part in (train, test))
    mean, std = x.mean(0), x.std(0).clamp(min=1e-8)
    x, x_test = ((one - mean) / std for one in (x, x_test))
    classes = F.one_hot(y).double()
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x.T @ (classes - classes.mean(0)))
    return ((x_test @ weights + classes.mean(0)).argmax(1) == y_test).double().mean().item()


GATE = Experiment(
    "gate", "Gate: is there anything to hand on?", ("digits", "fashion-mnist-s"), runs,
    prepare=prepare, finish=verdict,
)  # fmt: skip
main = partial(sweep, GATE)

if __name__ == "__main__":
    run(main)
