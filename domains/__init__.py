"""What models draw: one file per modality, and the table of data sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import InputError

from . import sources
from .codecs import PIXELS
from .images import Batch, Domain, Draw, ImageSet, Item
from .sources import NoHeldOut

__all__ = ["DATASETS", "Batch", "Domain", "Draw", "ImageSet", "Item", "NoHeldOut", "Row", "build"]


@dataclass(frozen=True)
class Row:
    """A data set: how it is opened, and the flags that it sets unless the user does."""

    source: Callable[[sources.Where], sources.Source]
    defaults: dict[str, Any]  # flag -> value; None: known once the data are open
    fixed: dict[str, Any] = field(default_factory=dict)  # what no flag can change
    takes_data_path: bool = True


def default_flags(
    image_size: int, num_classes: int | None, vae: str, *, hflip: bool
) -> dict[str, Any]:
    return dict(image_size=image_size, num_classes=num_classes, vae=vae, hflip=hflip)


DATASETS = {
    # 1,797 handwritten digits, 8x8 grey, bundled with scikit-learn
    "digits": Row(
        sources.digits,
        default_flags(8, 10, PIXELS, hflip=False),
        dict(channels=1, only_size=8, class_names=sources.DIGITS),
        takes_data_path=False,
    ),
    # 70,000 pictures of clothes, 28x28 grey padded to 32x32, local IDX files
    "fashion-mnist": Row(
        sources.fashion_mnist,
        default_flags(32, 10, PIXELS, hflip=False),
        dict(channels=1, only_size=32, class_names=sources.FASHION),
    ),
    # --data-path FOLDER/class/image; without classes (--num-classes 0) any layout
    "folder": Row(sources.folder, default_flags(256, None, "ema", hflip=True), dict(channels=3)),
    # ImageNet from the Hugging Face hub, or from --data-path FOLDER/class/image
    "imagenet-1k": Row(
        sources.imagenet, default_flags(256, 1000, "ema", hflip=True), dict(channels=3)
    ),
}
# Any image data set of the hub, or a folder written by datasets.save_to_disk.
HUB = Row(sources.HubSource, default_flags(256, None, "ema", hflip=True), dict(channels=3))


def find(dataset_name: str) -> Row:
    if dataset_name in DATASETS:
        return DATASETS[dataset_name]
    if "/" in dataset_name or sources.is_saved(dataset_name):
        return HUB
    raise InputError(
        f"unknown --dataset_name {dataset_name!r}; choose from {', '.join(DATASETS)}, a hub id "
        "OWNER/NAME, or the path of a folder written by datasets.save_to_disk"
    )


def build(
    dataset_name: str,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    vae: str | None = None,
    data_path: str | None = None,
    cache_dir: str | None = None,
    skip_corrupt: bool = False,
) -> Domain:
    """The domain of a data set; None stands for the data set's default.

    Opens neither data nor VAE weights: they open, and may be refused, when first asked for.

    Raises:
        InputError: unknown name, or flags that do not fit the data set.
    """
    row = find(dataset_name)
    given = dict(image_size=image_size, num_classes=num_classes, vae=vae)
    resolved = row.defaults | {flag: value for flag, value in given.items() if value is not None}
    if data_path and not row.takes_data_path:
        raise InputError(f"--dataset_name {dataset_name} needs no data: leave out --data-path")
    return Domain.create(
        dataset_name,
        row.source,
        **resolved,
        **row.fixed,
        data_path=data_path,
        cache_dir=cache_dir,
        skip_corrupt=skip_corrupt,
    )
