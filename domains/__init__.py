"""What models draw: one file per modality, and the table of data sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import InputError

from . import foreign, latents, oobleck, sources, store, tiny_imagenet
from .audio import AudioDomain
from .codecs import PIXELS
from .domain import Batch, DataSet, Domain, as_read
from .images import ImageDomain
from .latents import LatentDomain, LatentSource
from .order import Draws
from .sources import NoHeldOut

__all__ = [
    "DATASETS", "Batch", "DataSet", "Domain", "Draws", "NoHeldOut", "Row", "as_read", "build",
]  # fmt: skip

Opener = Callable[[str | None, int | None], LatentSource]  # of --data-path and --image-size


@dataclass(frozen=True)
class Row:
    """A data set: how it is opened, and the flags that it sets unless the user does."""

    source: Callable[[sources.Where], sources.Source] = sources.no_images
    defaults: dict[str, Any] = field(default_factory=dict)  # None: known once the data are open
    fixed: dict[str, Any] = field(default_factory=dict)  # what no flag can change
    takes_data_path: bool = True
    latents: Opener | None = None  # of data sets that are latents, whatever --data-path is
    create: Callable[..., Domain] = ImageDomain.create


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
    # 110,000 photos of 64x64 from --data-path tiny-imagenet-200, the folder as it is published
    "tiny-imagenet": Row(
        tiny_imagenet.TinyImageNet, default_flags(64, 200, PIXELS, hflip=True), dict(channels=3)
    ),
    # --data-path STORE, a folder of encode.py or REPA. Without it there are no data, but a model
    # that was trained on them can be sampled: its checkpoint has size, classes and VAE.
    "latents": Row(defaults=default_flags(256, None, "ema", hflip=True), fixed=dict(channels=3)),
    # --data-path FOLDER of LightningDiT's safetensors; needed for sampling too
    "lightningdit": Row(latents=foreign.LightningDiTShards),
    # MTG-Jamendo's mp3 files and tags: 10-second crops, 87 genres and 40 instruments
    "mtg-jamendo": Row(
        defaults=default_flags(441_000, None, oobleck.STABLE_AUDIO, hflip=False),
        create=AudioDomain.create,
    ),
    # random moments of Stable Diffusion's shape in memory: benchmarks, cluster tests
    "synthetic": Row(latents=latents.Synthetic, takes_data_path=False),
}
# Folders of latents that are recognized under any name of a data set that takes --data-path.
STORES: tuple[tuple[Callable[[Path], bool], Opener], ...] = (
    (store.is_store, store.MomentStore),
    (foreign.is_repa, foreign.RepaFolder),
    (foreign.is_lightningdit, foreign.unnamed_lightningdit),
)
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

    Opens neither images nor VAE weights: they open, and may be refused, when first asked for. A
    folder of latents is read as far as it says what is in it, and a --vae that is not the one it
    names is compared with it.

    Raises:
        InputError: unknown name, or flags that do not fit the data set.
    """
    row = find(dataset_name)
    if data_path and not row.takes_data_path:
        raise InputError(f"--dataset_name {dataset_name} needs no data: leave out --data-path")
    given = dict(image_size=image_size, num_classes=num_classes, vae=vae)
    if opener := row.latents or stored_latents(data_path):
        stored = opener(data_path, image_size)
        return LatentDomain.create(dataset_name, stored, **given, cache_dir=cache_dir)
    resolved = row.defaults | {flag: value for flag, value in given.items() if value is not None}
    return row.create(
        dataset_name,
        source=row.source,
        **resolved,
        **row.fixed,
        data_path=data_path,
        cache_dir=cache_dir,
        skip_corrupt=skip_corrupt,
    )


def stored_latents(data_path: str | None) -> Opener | None:
    """How to open a folder of latents; None: it is none."""
    if data_path is None:
        return None
    folder = Path(data_path)
    return next((opener for recognizes, opener in STORES if recognizes(folder)), None)
