"""What models draw: one file per modality, and the table of data sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runtime.errors import InputError

from . import (
    captioned_video,
    clip_store,
    foreign,
    frame_store,
    humanml3d,
    image_store,
    jamendo,
    latents,
    oobleck,
    sources,
    texts,
    tiny_imagenet,
    track_store,
    video,
)
from .audio import SAMPLES
from .codecs import PIXELS
from .domain import Batch, Condition, DataSet, Domain, as_read, evenly_spaced, loader_of
from .images import ImageDomain
from .latents import LatentDomain, LatentSource
from .motion import MotionDomain
from .order import Draws, held_out_order
from .sources import NoHeldOut

__all__ = [
    "DATASETS", "Batch", "Condition", "DataSet", "Domain", "Draws", "NoHeldOut", "Row", "as_read",
    "build", "evenly_spaced", "held_out_order", "loader_of",
]  # fmt: skip

Create = Callable[..., Domain]  # of a name and flags


@dataclass(frozen=True)
class Row:
    """A data set: how it is opened, and the flags that it sets unless the user does."""

    source: Callable[[sources.Where], sources.Source] = sources.no_images
    defaults: dict[str, Any] = field(default_factory=dict)  # None: known once the data are open
    fixed: dict[str, Any] = field(default_factory=dict)  # what no flag can change
    takes_data_path: bool = True
    own_folder: bool = False  # --data-path is what `create` knows, and none of STORES
    create: Create = ImageDomain.create


def latents_of(opener: Callable[[str | None, int | None], LatentSource]) -> Create:
    """How a domain is made of latents of images: what is not asked for, they decide.

    Args:
        opener: of --data-path and --image-size.
    """

    def create(
        name: str, *, data_path: str | None, cache_dir: str | None, image_size: int | None = None,
        num_classes: int | None = None, vae: str | None = None, **_,
    ) -> LatentDomain:  # fmt: skip
        return LatentDomain.create(
            name, opener(data_path, image_size), image_size=image_size, num_classes=num_classes,
            vae=vae, cache_dir=cache_dir,
        )  # fmt: skip

    return create


def default_flags(
    image_size: int | None, num_classes: int | None, vae: str | None, *, hflip: bool
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
    # Han characters from a system's fonts (python -m experiments.glyphs): 32x32, by radical
    "glyphs": Row(sources.folder, default_flags(32, None, PIXELS, hflip=False), dict(channels=3)),
    # Drawings of Debian's openclipart-png (python -m experiments.clipart): 32x32, by subject
    "openclipart": Row(
        sources.folder, default_flags(32, None, PIXELS, hflip=False), dict(channels=3)
    ),
    # --data-path STORE, a folder of encode.py or REPA. Without it there are no data, but a model
    # that was trained on them can be sampled: its checkpoint has size, classes and VAE.
    "latents": Row(defaults=default_flags(256, None, "ema", hflip=True), fixed=dict(channels=3)),
    # --data-path FOLDER of LightningDiT's safetensors; needed for sampling too
    "lightningdit": Row(create=latents_of(foreign.LightningDiTShards), own_folder=True),
    # MTG-Jamendo's mp3 files and tags: 10-second crops, 87 genres and 40 instruments
    "mtg-jamendo": Row(
        defaults=default_flags(SAMPLES, None, oobleck.STABLE_AUDIO, hflip=False),
        fixed=dict(rate=44_100, held_out_labels=True),
        create=jamendo.music,
    ),
    # The same, trained on all tracks: none is held out
    "mtg-jamendo-all": Row(
        defaults=default_flags(SAMPLES, None, oobleck.STABLE_AUDIO, hflip=False),
        fixed=dict(rate=44_100, held_out_parts=(), held_out_labels=False),
        create=jamendo.music,
    ),
    # Rendered instruments in the same layout (python -m experiments.instruments): 2-second crops.
    # Its published samples have the labels of training tracks, which they are scored beside.
    "instruments": Row(
        defaults=default_flags(32_768, None, "vae/instruments", hflip=False),
        fixed=dict(rate=16_000, held_out_labels=False),
        create=jamendo.music,
    ),
    # HumanML3D's motions and captions: --data-path the folder of new_joint_vecs and texts
    "humanml3d": Row(
        defaults=default_flags(humanml3d.CANVAS, None, PIXELS, hflip=False)
        | dict(text_encoder=texts.CLIP),
        create=MotionDomain.create,
    ),
    # CLEVRER's mp4 files: --data-path the folder of video_train and video_validation
    "clevrer": Row(
        video.clevrer,
        default_flags(256, 0, "ema", hflip=False) | dict(num_frames=16, frame_stride=3),
        dict(fps=25),
        create=video.videos,
    ),
    # Something-Something V2's webm files and lists; with its captions for Wan2.1 and CogVideoX
    "ssv2": Row(
        video.ssv2,
        default_flags(None, 0, None, hflip=False)
        | dict(num_frames=33, frame_stride=1, text_encoder=texts.NONE),
        dict(fps=12, holds=True),
        create=captioned_video.ssv2_domain,
    ),
    # images that move, in CLEVRER's layout: --data-path the folder of experiments.moving
    "moving": Row(
        video.clevrer,
        default_flags(32, None, PIXELS, hflip=False) | dict(num_frames=8, frame_stride=2),
        dict(fps=25, channels=1),
        create=video.videos,
    ),
    # random moments of Stable Diffusion's shape in memory: benchmarks, cluster tests
    "synthetic": Row(create=latents_of(latents.Synthetic), takes_data_path=False),
}
# Folders of latents that are recognized under any name of a data set that takes --data-path.
STORES: tuple[tuple[Callable[[Path], bool], Create], ...] = (
    (track_store.is_store, track_store.music),
    (frame_store.is_store, frame_store.videos),
    (clip_store.is_store, clip_store.captioned),
    (image_store.is_store, latents_of(image_store.MomentStore)),
    (foreign.is_repa, latents_of(foreign.RepaFolder)),
    (foreign.is_lightningdit, latents_of(foreign.unnamed_lightningdit)),
)
# Any image data set of the hub, or a folder written by datasets.save_to_disk.
HUB = Row(sources.HubSource, default_flags(256, None, "ema", hflip=True), dict(channels=3))
# Flags that only some data sets have a default for -> what the others are without.
OWN = {"text_encoder": "texts", "num_frames": "frames", "frame_stride": "frames"}


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
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    vae: str | None = None,
    text_encoder: str | None = None,
    num_frames: int | None = None,
    frame_stride: int | None = None,
    pretrained: str | None = None,
    data_path: str | None = None,
    cache_dir: str | None = None,
    skip_corrupt: bool = False,
    device: torch.device | str = "cpu",
) -> Domain:
    """The domain of a data set; None stands for the data set's default.

    Args:
        image_size: of videos in pixels (--vae none) height and width, too.
        pretrained: a pipeline of diffusers whose network is to be trained: of data with texts, its
            VAE, unless latents are stored, and its text encoder are the default.
        device: where captions are encoded.

    Opens neither images nor VAE weights: they open, and may be refused, when first asked for. A
    folder of latents is read as far as it says what is in it, and a --vae that is not the one it
    names is compared with it.

    Raises:
        InputError: unknown name, or flags that do not fit the data set.
    """
    row = find(dataset_name)
    stored = None if row.own_folder else stored_latents(data_path)
    if data_path and not row.takes_data_path:
        raise InputError(f"--dataset_name {dataset_name} needs no data: leave out --data-path")
    given = given_flags(
        dataset_name, row, pretrained, stored=stored is not None, image_size=image_size,
        num_classes=num_classes, vae=vae, text_encoder=text_encoder, num_frames=num_frames,
        frame_stride=frame_stride,
    )  # fmt: skip
    if "text_encoder" in row.defaults:
        given["device"] = device
    if stored:
        return stored(
            dataset_name, **given, defaults=row.defaults | row.fixed, pretrained=pretrained,
            data_path=data_path, cache_dir=cache_dir,
        )  # fmt: skip
    return row.create(
        dataset_name,
        source=row.source,
        **row.defaults | given,
        **row.fixed,
        data_path=data_path,
        cache_dir=cache_dir,
        skip_corrupt=skip_corrupt,
    )


def given_flags(
    dataset_name: str, row: Row, pretrained: str | None, *, stored: bool, **flags: Any
) -> dict[str, Any]:
    """The flags that say something; of data with texts, `pretrained` says its parts.

    Args:
        stored: whether latents are, whose VAE is known.

    Raises:
        InputError: flags that do not fit the data set.
    """
    if pretrained and "text_encoder" in row.defaults:
        if flags["text_encoder"] == texts.NONE:
            raise InputError(
                f"--text-encoder {texts.NONE}: --pretrained {pretrained} takes captions, leave it "
                "out"
            )
        flags["text_encoder"] = flags["text_encoder"] or pretrained
        if not stored:
            flags["vae"] = flags["vae"] or pretrained
    given = {flag: value for flag, value in flags.items() if value is not None}
    for flag in OWN:
        if flag in given and flag not in row.defaults:
            raise InputError(
                f"--{flag.replace('_', '-')} {given[flag]}: {dataset_name} has no {OWN[flag]}, "
                "leave it out"
            )
    return given


def stored_latents(data_path: str | None) -> Create | None:
    """How a domain is made of a folder of latents; None: it is none."""
    if data_path is None:
        return None
    folder = Path(data_path)
    return next((create for recognizes, create in STORES if recognizes(folder)), None)
