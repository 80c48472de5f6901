"""Linear probes of a network's blocks: how well a linear map reads the class from each.

python -m evaluations.classification results/000-SiT-Ti-2-digits
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tyro

from evaluations import by_block, probes
from evaluations.features import Study, StudyFlags
from runtime import distributed
from runtime.config import at_least, checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.text import columns


@dataclass(frozen=True)
class ProbeFlags(StudyFlags):
    images: int | None = None  # training images at most, a random choice; None: all
    epochs: int | None = None  # of the linear heads; None: 50, more of small data (4,850 steps)
    probe_batch: int = 1024  # images per step of theirs; fewer of small data, 20 steps an epoch
    probe_lr: float = 1e-3  # AdamW, cosine to 0
    norm: bool = True  # a batch norm before each head, as REPA's authors have it
    mirror: bool = True  # train on mirror images too, where the data set allows it
    neighbors: int = 20  # of the k-NN accuracy


@dataclass(frozen=True)
class Flags(ProbeFlags):
    """Accuracy of linear probes, and of nearest neighbours, for every block.

    The feature is the mean over a block's tokens; all heads train in one pass, each as if alone.
    Beside them a ridge regression, which is solved and not trained: where the two disagree, the
    heads have not converged.
    The paper: Tiny ImageNet at 256 pixels, 50 epochs, --data tiny-imagenet --data-path FOLDER.

    $ python -m evaluations.classification results/000-SiT-Ti-2-digits
    """


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start(flags.device)
    study = Study(flags, ranks)
    found = probed(study, flags)

    def tell() -> None:
        print(as_text(found))
        print(*by_block.write(found, study.folder / "classification.json"), sep="\n")

    ranks.from_main(tell)


def probed(study: Study, flags: ProbeFlags) -> dict[str, Any]:
    """What the JSON holds; the same on all ranks."""
    at_least(flags, epochs=1, probe_batch=2, neighbors=1)
    if not 0 < flags.probe_lr < 1e6:
        raise InputError(f"--probe-lr {flags.probe_lr}: give a number above 0")
    classes = len(study.class_names())
    if study.domain.multi_label:
        raise InputError(
            f"samples of {study.domain.name} have several labels, and these probes are of classes: "
            "evaluations.suggest_pairs reads them, by ridge regression"
        )
    mirrors = flags.mirror and study.domain.has_pictures and study.domain.hflip
    mirrored = [False, True] if mirrors else [False]
    study.images(held_out=True)  # refused before the training images are looked at
    views = [study.pooled(held_out=False, most=flags.images, mirrored=one) for one in mirrored]
    test = study.pooled(held_out=True)
    fit = probes.Fit(flags.epochs, flags.probe_batch, flags.probe_lr, flags.norm, flags.seed)

    def measure() -> dict[str, Any]:
        device = study.ranks.device
        accuracy = probes.train_heads(views, test, classes, fit, device)

        def of_each(read: Callable[..., float], **options: int) -> list[float]:
            return [
                read(*(part.to(device) for part in
                       (views[0].of(block), views[0].classes, test.of(block), test.classes)),
                     **options)
                for block in test.blocks
            ]  # fmt: skip

        found = {
            "network": study.subject.name, "data": study.domain.name, "blocks": list(test.blocks),
            "train_images": len(views[0].labels), "test_images": len(test.labels),
            "view": study.subject.identity, "fit": vars(fit.resolved(len(views[0].labels))),
            "accuracy": accuracy.final, "best_epoch": accuracy.best, "rising": accuracy.rising,
            "ridge": of_each(probes.ridge_accuracy),
            "knn": of_each(probes.knn_accuracy, k=flags.neighbors),
        }  # fmt: skip
        return found | by_block.summary(found)

    return study.ranks.from_main(measure)


def as_text(found: dict[str, Any]) -> str:
    names = ("accuracy", "best_epoch", "ridge", "knn")
    rows = [
        [f"block {block}", *(f"{found[name][i]:.2%}" for name in names)]
        for i, block in enumerate(found["blocks"])
    ]
    rows.append(["mean", *(f"{found['mean'][name]:.2%}" for name in names)])
    return "\n".join(
        [
            f"{found['network']}: linear probes of {found['data']}, {found['train_images']:,} "
            f"images to train on, {found['test_images']:,} to test",
            columns(["", "linear, last epoch", "linear, best epoch", "ridge", "k-NN"], rows),
            f"the best block is {found['best_block']['accuracy']}",
            *(["note: the heads still learn: give more --epochs"] if found["rising"] else []),
        ]
    )


if __name__ == "__main__":
    run(main)
