"""What a run learns as it goes: held-out loss and a probe of every block at all its checkpoints.

python -m evaluations.progress results/000-SiT-Ti-2-digits
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from domains import DataSet
from evaluations import drop_blocks, heldout
from evaluations.features import Study, StudyFlags
from evaluations.report import kept
from evaluations.suggest_pairs import LEAST, qualities
from runtime import checkpoint, distributed
from runtime.config import GridODE, at_least, checked
from runtime.distributed import Ranks
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.text import columns
from sampling import domain_of


@dataclass(frozen=True)
class LookedFlags:
    images: int = 512  # held-out images of the loss, at most
    probed: int = 3000  # training images: two thirds to fit a probe to, the rest to test it on


@dataclass(frozen=True)
class WithoutFlags:
    dropped: int = 200  # held-out images of the loss without each block; 0: leave it out


@dataclass(frozen=True)
class Flags(WithoutFlags, LookedFlags, StudyFlags):
    """The held-out loss, and a ridge probe of every block, of all checkpoints of a run (train with
    --keep-last 0); of the last one also the loss without each block.

    The loss is that of evaluations.heldout, of every image, so that runs can be compared image by
    image; the probes are those of evaluations.suggest_pairs. Killed and started again, it goes on.

    $ python -m evaluations.progress results/000-SiT-Ti-2-digits
    """

    noise: float = 0.3  # 1 - t, share of noise in what the probed blocks see
    num_workers: int = 0  # processes that decode
    out: Path | None = None  # the JSON; None: progress.json in the run


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    at_least(flags, images=1, probed=LEAST, dropped=0)
    folder = Path(flags.ckpt)
    if not folder.is_dir() or not checkpoint.files_of(folder):
        raise InputError(f"{folder} is no run with checkpoints: name its folder")
    ranks = distributed.start_alone("evaluations.progress", flags.device)
    out = flags.out or folder / "progress.json"
    found = measured(folder, flags, ranks)
    write_json(out, found)
    print(f"{as_text(found)}\n{out}")


def measured(folder: Path, flags: Flags, ranks: Ranks) -> dict[str, Any]:
    """What the JSON holds."""
    entries = []
    for path in checkpoint.files_of(folder):
        study = Study(replace(flags, ckpt=str(path), out=None), ranks)
        looked = kept(
            study, "probes-and-loss", LookedFlags, lambda study=study: looked_at(study, flags)
        )
        entries.append({"step": int(path.stem), **looked})
    found = {
        "run": folder.name, "data": study.domain.name, "weights": flags.weights,
        "noise": flags.noise, "checkpoints": entries,
    }  # fmt: skip
    if flags.dropped:
        without = kept(study, "without-blocks", WithoutFlags, lambda: without_each(study, flags))
        found["dropped"] = without
    return found


def looked_at(study: Study, flags: Flags) -> dict[str, Any]:
    """The losses by quarter of t, means over the images and every image's own; the probes."""
    study.class_names()  # refused before the losses are looked at
    opened = study.subject.opened
    asked = heldout.Flags(images=flags.images, seed=flags.seed, batch_size=flags.batch_size)
    losses = torch.cat(list(heldout.losses_of(opened, shown(study), asked, study.ranks.device)))
    probe, tested = qualities(study, flags.probed)
    return {
        "held_out": True, "bins": losses.mean(0).tolist(), "losses": losses.mean(1).tolist(),
        "probe": probe, "tested": tested,
    }  # fmt: skip


def shown(study: Study) -> DataSet:
    """The held-out images of the losses, with the conditions that the network knows."""
    opened, val_path = study.subject.opened, study.flags.val_path
    where = replace(study.where, data_path=val_path) if val_path else study.where
    domain = domain_of(where, opened.checkpoint, opened.network.model)
    return domain.train_set(augment=False) if val_path else domain.held_out_set()


def without_each(study: Study, flags: Flags) -> list[float]:
    """How much more the held-out loss is without each block."""
    asked = drop_blocks.Flags(
        flags.ckpt, images=flags.dropped, samples=0, seed=flags.seed, batch_size=flags.batch_size
    )
    opened, device = study.subject.opened, study.ranks.device
    found, _ = drop_blocks.measured(opened, (shown(study), True), asked, GridODE(), device)
    return [row["more"]["mean"] for row in found["rows"][1:]]  # the first one is the whole


def as_text(found: dict[str, Any]) -> str:
    rows = []
    for one in found["checkpoints"]:
        best = int(np.argmax(one["probe"]))
        values = [np.mean(one["losses"]), *one["bins"]]
        rows.append([
            f"step {one['step']}", *(f"{value:.4f}" for value in values),
            f"{np.mean(one['probe']):.1%}", f"{one['probe'][best]:.1%} (block {best + 1})",
        ])  # fmt: skip
    count = len(found["checkpoints"][0]["bins"])
    head = ["", "loss", *(f"t {i / count:.2f}-{(i + 1) / count:.2f}" for i in range(count))]
    lines = [
        f"{found['run']}: velocity loss of held-out images of {found['data']}, t = 1 is data, and "
        "ridge probes of the blocks",
        columns([*head, "probes, mean", "best"], rows),
    ]
    if "dropped" in found:
        lines.append("more loss without each block: " + " ".join(
            f"{value:+.4f}" for value in found["dropped"]
        ))  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
