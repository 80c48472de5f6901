"""Linear segmentation probes: the class of every pixel from the tokens of each block.

python -m evaluations.segmentation results/000-SiT-XL-2-SiT-Training --data voc --data-path DATA
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from evaluations.features import Study, StudyFlags
from evaluations.features.study import check_shape
from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.text import columns

from .data import open_masks
from .heads import Fit, train
from .prepared import Prepared

ENCODER_SIZE = 256  # pixels of masks and images where no checkpoint says


@dataclass(frozen=True)
class SegmentationFlags:
    masks: str = "voc"  # voc, coco-things, coco-stuff, or the stand-ins digits, fashion-mnist
    masks_path: str | None = None  # the folder that holds VOCdevkit, or COCO's folders
    segmentation_epochs: int = 25  # of the heads
    segmentation_batch: int = 64  # images per step of theirs


@dataclass(frozen=True)
class Flags(SegmentationFlags, StudyFlags):
    """Mean IoU of a linear map from every block's tokens, as the paper measures it: clean images at
    t = 0.999, null label, 25 epochs of VOC. The last epoch and the best one.

    python -m evaluations.segmentation RUN --masks voc --masks-path DATA
    """


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start(flags.device)
    if ranks.size > 1:
        raise InputError("evaluations.segmentation runs in one process: start it without torchrun")
    study = Study(flags, ranks)
    found = segmented(study, flags)
    path = study.folder / "segmentation.json"
    write_json(path, found)
    print(f"{as_text(found)}\n{path}")


def segmented(study: Study, flags: SegmentationFlags) -> dict[str, Any]:
    """What the JSON holds."""
    for name in ("segmentation_epochs", "segmentation_batch"):
        if getattr(flags, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(flags, name)}: give 1 or more")
    subject, device = study.subject, study.ranks.device
    size = subject.reads[-1] if subject.reads else ENCODER_SIZE
    sets = [
        open_masks(flags.masks, flags.masks_path, size, held_out=held_out)
        for held_out in (False, True)
    ]
    images, _ = sets[0].__getitems__([0])
    check_shape(subject, flags.masks, tuple(images.shape[1:]))
    folder, batch = study.folder, flags.segmentation_batch
    train_set, test_set = (Prepared(subject, one, folder, device, batch) for one in sets)
    fit = Fit(flags.segmentation_epochs, batch, seed=study.flags.seed)
    result = train(subject, train_set, test_set, fit, device)
    return {
        "network": subject.name, "data": flags.masks, "blocks": list(subject.blocks),
        "train_images": len(train_set), "test_images": len(test_set), "pixels": size,
        "classes": list(sets[0].class_names), "view": subject.identity, "fit": vars(fit),
        "miou": result.final, "best_epoch": result.best,
    }  # fmt: skip


def as_text(found: dict[str, Any]) -> str:
    rows = [
        [f"block {block}", f"{found['miou'][i]:.2%}", f"{found['best_epoch'][i]:.2%}"]
        for i, block in enumerate(found["blocks"])
    ]
    rows.append(["mean", *(f"{np.mean(found[name]):.2%}" for name in ("miou", "best_epoch"))])
    head = ["", "mIoU, last epoch", "mIoU, best epoch"]
    return "\n".join(
        [
            f"{found['network']}: linear segmentation of {found['data']}, "
            f"{found['train_images']:,} images to train on, {found['test_images']:,} to test",
            columns(head, rows),
        ]
    )


if __name__ == "__main__":
    run(main)
