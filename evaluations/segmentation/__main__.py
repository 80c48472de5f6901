"""Linear segmentation probes: the class of every pixel from the tokens of each block.

python -m evaluations.segmentation results/000-SiT-XL-2-SiT-Training --masks voc --masks-path DATA
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from evaluations import by_block
from evaluations.features import Subject, SubjectFlags
from evaluations.features.study import check_pictures, check_shape, folder_of, open_subject
from runtime import distributed
from runtime.config import at_least, checked
from runtime.entry import run, speaks
from runtime.errors import InputError
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
class Flags(SegmentationFlags, SubjectFlags):
    """Mean IoU of a linear map from every block's tokens, as the paper measures it: clean images at
    t = 0.999, null label, 25 epochs of VOC. The last epoch and the best one.

    $ python -m evaluations.segmentation RUN --masks voc --masks-path DATA
    """


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start_alone("evaluations.segmentation", flags.device)
    check(flags)
    subject = open_subject(flags, ranks.device)
    check_pictures(subject)
    folder = folder_of(flags, subject)
    found = segmented(subject, flags, flags.seed, folder)
    print(as_text(found))
    print(*by_block.write(found, folder / "segmentation.json"), sep="\n")


def check(flags: Any) -> None:
    """
    Raises:
        InputError: flags of a command that reads masks that no probe can be made of.
    """
    at_least(flags, segmentation_epochs=1, segmentation_batch=1)
    if flags.label == "true":
        raise InputError("--label true: images with masks have no class, the label is the null")


def segmented(
    subject: Subject, flags: SegmentationFlags, seed: int, folder: Path
) -> dict[str, Any]:
    """What the JSON holds; the folder has room for the prepared images while this runs."""
    size = subject.reads[-1] if subject.reads else ENCODER_SIZE
    sets = [
        open_masks(flags.masks, flags.masks_path, size, held_out=held_out)
        for held_out in (False, True)
    ]
    images, _ = sets[0].__getitems__([0])
    check_shape(subject, flags.masks, tuple(images.shape[1:]))
    batch = flags.segmentation_batch
    train_set, test_set = (Prepared(subject, one, folder, batch) for one in sets)
    fit = Fit(flags.segmentation_epochs, batch, seed=seed)
    result = train(subject, train_set, test_set, fit)
    found = {
        "network": subject.name, "data": flags.masks, "blocks": list(subject.blocks),
        "train_images": len(train_set), "test_images": len(test_set), "pixels": size,
        "classes": list(sets[0].class_names), "view": subject.identity, "fit": vars(fit),
        "miou": result.final, "best_epoch": result.best, "rising": result.rising,
    }  # fmt: skip
    return found | by_block.summary(found)


def as_text(found: dict[str, Any]) -> str:
    rows = [
        [f"block {block}", f"{found['miou'][i]:.2%}", f"{found['best_epoch'][i]:.2%}"]
        for i, block in enumerate(found["blocks"])
    ]
    rows.append(["mean", *(f"{found['mean'][name]:.2%}" for name in ("miou", "best_epoch"))])
    head = ["", "mIoU, last epoch", "mIoU, best epoch"]
    return "\n".join(
        [
            f"{found['network']}: linear segmentation of {found['data']}, "
            f"{found['train_images']:,} images to train on, {found['test_images']:,} to test",
            columns(head, rows),
            *(["note: the heads still learn: give more epochs"] if found["rising"] else []),
        ]
    )


if __name__ == "__main__":
    run(main)
