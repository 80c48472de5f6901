"""What models draw: one file per modality, and the table of data sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import InputError

from . import sources
from .images import Batch, Domain, Draw, ImageSet, Item

__all__ = ["DATASETS", "Batch", "Domain", "Draw", "ImageSet", "Item", "Row", "build", "defaults"]


@dataclass(frozen=True)
class Row:
    """A data set: how it is opened, and the flags that it sets unless the user does."""

    help: str
    source: Callable[[sources.Where], sources.Source]
    defaults: dict[str, Any]  # flag -> value; None: known once the data are open
    fixed: dict[str, Any] = field(default_factory=dict)  # what no flag can change
    takes_data_path: bool = True
    domain: Callable[..., Domain] = Domain.create


def flags(image_size: int, num_classes: int | None, vae: str, *, hflip: bool) -> dict[str, Any]:
    return dict(image_size=image_size, num_classes=num_classes, vae=vae, hflip=hflip)


DATASETS = {
    "digits": Row(
        "1,797 handwritten digits, 8x8 grey, bundled with scikit-learn",
        sources.digits,
        flags(8, 10, "none", hflip=False),
        dict(channels=1, sizes=(8,), class_names=sources.DIGITS),
        takes_data_path=False,
    ),
    "fashion-mnist": Row(
        "70,000 pictures of clothes, 28x28 grey padded to 32x32, local IDX files",
        sources.fashion_mnist,
        flags(32, 10, "none", hflip=False),
        dict(channels=1, sizes=(32,), class_names=sources.FASHION),
    ),
    "folder": Row(
        "--data-path FOLDER/class/image; without classes (--num-classes 0) any layout",
        sources.folder,
        flags(256, None, "ema", hflip=True),
        dict(channels=3),
    ),
    "imagenet-1k": Row(
        "ImageNet from the Hugging Face hub, or from --data-path FOLDER/class/image",
        sources.imagenet,
        flags(256, 1000, "ema", hflip=True),
        dict(channels=3),
    ),
}
HUB = Row(
    "any image data set of the hub, or a folder written by datasets.save_to_disk",
    sources.HubSource,
    flags(256, None, "ema", hflip=True),
    dict(channels=3),
)


def find(dataset_name: str) -> Row:
    if dataset_name in DATASETS:
        return DATASETS[dataset_name]
    if "/" in dataset_name:
        return HUB
    raise InputError(
        f"unknown --dataset_name {dataset_name!r}; choose from {', '.join(DATASETS)}, a hub id "
        "OWNER/NAME, or the path of a folder written by datasets.save_to_disk"
    )


def defaults(dataset_name: str) -> dict[str, Any]:
    """image_size, num_classes, vae and hflip of a data set; None: known once the data are open."""
    return dict(find(dataset_name).defaults)


def build(
    dataset_name: str,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    vae: str | None = None,
    hflip: bool | None = None,
    data_path: str | None = None,
    dataset_split: str | None = None,
    cache_dir: str | None = None,
    skip_corrupt: bool = False,
) -> Domain:
    """The domain of a data set; None stands for the data set's default.

    Opens neither data nor VAE weights: they open, and may be refused, when first asked for.

    Raises:
        InputError: unknown name, or flags that do not fit the data set.
    """
    row = find(dataset_name)
    given = dict(image_size=image_size, num_classes=num_classes, vae=vae, hflip=hflip)
    resolved = row.defaults | {flag: value for flag, value in given.items() if value is not None}
    if data_path and not row.takes_data_path:
        raise InputError(f"--dataset_name {dataset_name} needs no data: leave out --data-path")
    return row.domain(
        dataset_name,
        row.source,
        **resolved,
        **row.fixed,
        data_path=data_path,
        dataset_split=dataset_split,
        cache_dir=cache_dir,
        skip_corrupt=skip_corrupt,
    )
