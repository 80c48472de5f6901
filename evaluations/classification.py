"""Linear probes of a network's blocks: how well a linear map reads the class from each.

python -m evaluations.classification results/000-SiT-Ti-2-digits
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from evaluations import probes
from evaluations.features import Pooled, Study, StudyFlags
from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.text import columns


@dataclass(frozen=True)
class ProbeFlags(StudyFlags):
    images: int | None = None  # training images at most, a random choice; None: all
    epochs: int = 50  # of the linear heads
    probe_batch: int = 1024  # images per step of theirs; fewer of small data, 20 steps an epoch
    probe_lr: float = 1e-3  # AdamW, cosine to 0
    norm: bool = True  # a batch norm before each head, as REPA's authors have it
    mirror: bool = True  # train on mirror images too, where the data set allows it
    neighbors: int = 20  # of the k-NN accuracy


@dataclass(frozen=True)
class Flags(ProbeFlags):
    """Accuracy of a linear probe and of nearest neighbours for every block.

    The feature is the mean over a block's tokens; all heads train in one pass, each as if alone.
    The paper: Tiny ImageNet at 256 pixels, 50 epochs, --data tiny-imagenet --data-path FOLDER.

    python -m evaluations.classification results/000-SiT-Ti-2-digits
    """


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start(flags.device)
    study = Study(flags, ranks)
    found = probed(study, flags)

    def tell() -> None:
        path = study.folder / "classification.json"
        write_json(path, found)
        print(f"{as_text(found)}\n{path}")

    ranks.from_main(tell)


def probed(study: Study, flags: ProbeFlags) -> dict[str, Any]:
    """What the JSON holds; the same on all ranks."""
    for name in ("images", "epochs", "probe_batch", "neighbors"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: give 1 or more")
    classes = len(study.class_names())
    mirrored = [False, True] if flags.mirror and study.domain.hflip else [False]
    study.images(held_out=True)  # refused before the training images are looked at
    views = [study.pooled(held_out=False, most=flags.images, mirrored=one) for one in mirrored]
    test = study.pooled(held_out=True)
    fit = probes.Fit(flags.epochs, flags.probe_batch, flags.probe_lr, flags.norm, flags.seed)

    def measure() -> dict[str, Any]:
        accuracy = probes.train_heads(views, test, classes, fit, study.ranks.device)
        near = [neighbors(views[0], test, block, flags, study) for block in test.blocks]
        return {
            "network": study.subject.name, "data": study.domain.name, "blocks": list(test.blocks),
            "train_images": len(views[0].labels), "test_images": len(test.labels),
            "view": study.subject.identity, "fit": vars(fit),
            "accuracy": accuracy.final, "best_epoch": accuracy.best, "knn": near,
        }  # fmt: skip

    return study.ranks.from_main(measure)


def neighbors(train: Pooled, test: Pooled, block: int, flags: ProbeFlags, study: Study) -> float:
    device = study.ranks.device
    parts = (train.of(block), train.classes, test.of(block), test.classes)
    return probes.knn_accuracy(*(part.to(device) for part in parts), k=flags.neighbors)


def as_text(found: dict[str, Any]) -> str:
    names = ("accuracy", "best_epoch", "knn")
    rows = [
        [f"block {block}", *(f"{found[name][i]:.2%}" for name in names)]
        for i, block in enumerate(found["blocks"])
    ]
    rows.append(["mean", *(f"{np.mean(found[name]):.2%}" for name in names)])
    best = found["blocks"][int(np.argmax(found["accuracy"]))]
    return "\n".join(
        [
            f"{found['network']}: linear probes of {found['data']}, {found['train_images']:,} "
            f"images to train on, {found['test_images']:,} to test",
            columns(["", "linear, last epoch", "linear, best epoch", "k-NN"], rows),
            f"the best block is {best}",
        ]
    )


if __name__ == "__main__":
    run(main)
