"""One network and one data set, as the flags of an evaluation of features name them."""

from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

import domains
from domains import DataSet, Domain, NoHeldOut
from domains.codecs import PIXELS
from domains.domain import fingerprint_of
from domains.reading import chosen
from evaluations.extractors.timm import Asked
from evaluations.extractors.vit import VisionTransformer
from runtime.config import BlockNumbers, SampleFlags
from runtime.distributed import Ranks
from runtime.errors import InputError
from sampling import open_checkpoint, with_data

from .denoiser import Denoiser, View
from .encoder import Encoder
from .pooled import Pooled, Reading, pooled
from .subject import Subject

ENCODER = "timm:"
GRID = 16  # patches of an encoder along a side: 224 pixels for patches of 14


@dataclass(frozen=True)
class DataFlags:
    data: str | None = None  # --dataset_name of the images; None: the checkpoint's
    data_path: str | None = None  # folder of the data; None: without --data, the checkpoint's
    skip_corrupt: bool = False  # replace unreadable images and videos by the next one
    val_path: str | None = None  # folder of the held-out images, where the data have none
    num_workers: int = 4  # processes that decode


@dataclass(frozen=True)
class SubjectFlags:
    # a file, a run (its newest), or timm:MODEL
    ckpt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CKPT")] = tyro.MISSING
    blocks: BlockNumbers = ()  # which, counted from 1; none: all
    noise: float = 0.0  # 1 - t, share of noise in the input: 0 the clean image (t = 0.999)
    label: Literal["null", "true"] = "null"  # the condition; the true class tells the answer
    latent: Literal["sample", "mode"] = "sample"  # of the VAE's posterior
    seed: int = 0  # of noise, posterior and the choice of images
    weights: Literal["ema", "model"] = "ema"  # which weights of the checkpoint
    skip_blocks: BlockNumbers = ()  # blocks of it that are left out, from 1 (Table 8)
    encoder_weights: Path | None = None  # file of timm:MODEL; None: where timm keeps downloads
    vae: str | None = None  # ema, mse, a hub id or a folder; None: the checkpoint's
    batch_size: int = 64  # images per batch and process
    bf16: bool = False  # run the network under bfloat16 autocast
    cache_dir: str = "./cache/"  # downloads of data sets and VAEs
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one
    out: Path | None = None  # a folder; None: representation/STEP in the run

    @property
    def view(self) -> View:
        """How the network is shown its images."""
        return View(self.noise, self.label, self.latent, self.seed)


@dataclass(frozen=True)
class StudyFlags(DataFlags, SubjectFlags):
    """The flags of a command that looks at a data set."""


class Study:
    """The network of `ckpt` and its images.

    Raises:
        InputError: no such network; later, no such data, or images that it cannot read.
    """

    def __init__(self, flags: StudyFlags, ranks: Ranks) -> None:
        self.flags, self.ranks = flags, ranks
        if flags.ckpt.startswith(ENCODER) and flags.data is None:
            raise InputError("--data is missing: name the images by their --dataset_name")
        self.subject = open_subject(flags, ranks.device)

    @cached_property
    def domain(self) -> Domain:
        """The images with their classes; the clips, or the crops of sound."""
        return self.readable(self.domain_at(self.where.data_path))

    @cached_property
    def where(self) -> SampleFlags:
        """What the flags say of the data, and the checkpoint where they say nothing."""
        flags = self.flags
        asked = SampleFlags(
            dataset_name=flags.data, data_path=flags.data_path, skip_corrupt=flags.skip_corrupt,
            vae=flags.vae, cache_dir=flags.cache_dir,
        )  # fmt: skip
        if isinstance(self.subject, Denoiser):
            return with_data(asked, self.subject.opened.checkpoint)
        return asked

    def readable(self, domain: Domain) -> Domain:
        """The same domain.

        Raises:
            InputError: it has other classes than those that the network is to be told, or sounds
                that are slower or faster than its own.
        """
        rate = self.subject.rate
        if rate != domain.rate:
            raise InputError(
                f"{self.subject.name} hears {rate} samples per second, and {domain.name} has "
                f"{domain.rate}"
            )
        known, told = self.subject.classes, isinstance(self.subject, Denoiser)
        if told and self.flags.view.label == "true" and known != (domain.name, domain.num_classes):
            raise InputError(
                f"--label true: {self.subject.name} knows the {known[1]} classes of {known[0]}, "
                f"not the {domain.num_classes} of {domain.name}"
            )
        return domain

    @property
    def folder(self) -> Path:
        return folder_of(self.flags, self.subject)

    def beside(self, ckpt: str, **changes: Any) -> "Study":
        """Another network that looks at the images of this study.

        Raises:
            InputError: there is none, or they are not what it reads.
        """
        where = self.where
        flags = replace(
            self.flags, ckpt=ckpt, data=self.domain.name, data_path=where.data_path,
            skip_corrupt=where.skip_corrupt, **changes,
        )  # fmt: skip
        other = Study(flags, self.ranks)
        check_shape(other.subject, self.domain.name, self.domain.raw_shape)
        other.domain = other.readable(self.domain)
        return other

    def at(self, noise: float) -> "Study":
        """The same images, shown to the same network at another share of noise."""
        other = copy(self)
        other.flags, other.subject = replace(self.flags, noise=noise), self.subject.at(noise)
        return other

    def domain_at(self, data_path: str | None) -> Domain:
        flags, ours = self.flags, self.subject
        name = flags.data or ours.classes[0]
        size = ours.reads[-1] if ours.reads else None
        if domains.stored_latents(data_path):
            raise InputError(
                f"{data_path} holds latents: name the folder of the samples that they were made of"
            )
        clips = ours.clips if name == ours.classes[0] else {}
        domain = domains.build(
            name, data_path=data_path, image_size=size, vae=PIXELS, cache_dir=flags.cache_dir,
            skip_corrupt=self.where.skip_corrupt, **clips,
        )  # fmt: skip
        if domain.stored_in is not None:
            raise InputError(f"{name} holds latents: name the images themselves with --data")
        check_shape(ours, name, domain.raw_shape)
        return domain

    def images(self, *, held_out: bool) -> DataSet:
        """The images to fit to, or those to test on.

        Raises:
            NoHeldOut: the data have none, and no --val-path.
        """
        if not held_out:
            return self.domain.train_set(augment=False)
        if not self.flags.val_path:
            try:
                return self.domain.held_out_set()
            except NoHeldOut as error:
                raise NoHeldOut(f"{error}; or name a folder of some with --val-path") from error
        held_out = self.domain_at(self.flags.val_path)
        ours, theirs = (one.class_names for one in (self.domain, held_out))
        if ours != theirs:
            raise InputError(
                f"--val-path {self.flags.val_path} has other classes ({len(theirs)}) than "
                f"--data-path {self.where.data_path} ({len(ours)}): a probe needs the same"
            )
        return held_out.train_set(augment=False)

    def pooled(self, *, held_out: bool, most: int | None = None, mirrored: bool = False) -> Pooled:
        """Mean tokens of all images, or of `most` that the seed chooses."""
        reading = self.reading(held_out=held_out, most=most, mirrored=mirrored)
        return pooled(self.subject, reading, self.folder / "features", self.ranks)

    def reading(
        self, *, held_out: bool, most: int | None = None, mirrored: bool = False
    ) -> Reading:
        """
        Raises:
            InputError: `most` is no number of images.
        """
        if most is not None and most < 2:
            raise InputError(f"{most} images tell nothing: give 2 or more")
        flags, images = self.flags, self.images(held_out=held_out)
        numbers = range(len(images))
        if most is not None and most < len(images):
            numbers = chosen(len(images), most, flags.seed, "study")
        data = f"{fingerprint_of(images)} {self.domain.raw_shape}"
        return Reading(images, numbers, data, flags.batch_size, flags.num_workers, mirrored)

    def has_held_out(self) -> bool:
        try:
            self.images(held_out=True)
        except NoHeldOut:
            return False
        return True

    def class_names(self) -> tuple[str, ...]:
        """
        Raises:
            InputError: the images have fewer than two classes.
        """
        count = self.domain.num_classes
        if count < 2:
            raise InputError(f"a probe reads classes, and {self.domain.name} has none")
        return self.domain.class_names or tuple(map(str, range(count)))


def check_shape(subject: Subject, name: str, shape: tuple[int, ...]) -> None:
    """
    Raises:
        InputError: samples of this shape are not what the network reads.
    """
    fits = len(shape) == 3 if subject.reads is None else shape == subject.reads
    if not fits:
        size = subject.reads or "three axes"
        raise InputError(f"{subject.name} reads samples of {size}, and those of {name} are {shape}")


def check_pictures(subject: Subject) -> None:
    """
    Raises:
        InputError: it reads video or sound, and the command is of places in a picture.
    """
    if subject.reads and len(subject.reads) != 3:
        name = subject.classes[0]
        raise InputError(f"{subject.name} is a model of {name}: this command is for pictures")


def open_subject(flags: SubjectFlags, device: torch.device) -> Subject:
    """The checkpoint, or the encoder timm:MODEL, that --ckpt names."""
    if flags.ckpt.startswith(ENCODER):
        name = flags.ckpt.removeprefix(ENCODER)
        asked = Asked(flags.ckpt, "--encoder-weights")
        network = VisionTransformer(name, flags.encoder_weights, (GRID, GRID), asked)
        return Encoder(network.to(device), flags.blocks)
    asked = SampleFlags(
        ckpt=flags.ckpt, weights=flags.weights, vae=flags.vae, skip_blocks=flags.skip_blocks,
        cache_dir=flags.cache_dir, bf16=flags.bf16, device=flags.device, compile="off",
    )  # fmt: skip
    return Denoiser(open_checkpoint(asked, device, of_captions=False), flags.blocks, flags.view)


def home(ckpt: Path) -> Path:
    """Where an evaluation of features writes what it finds, unless --out says else."""
    ckpt = ckpt.absolute()  # a bare name is of a run, too
    if ckpt.parent.name == "checkpoints":
        return ckpt.parent.parent / "representation" / ckpt.stem
    return Path("representation") / f"{ckpt.parent.name}-{ckpt.stem}"


def folder_of(flags: SubjectFlags, subject: Subject) -> Path:
    """Where the results go."""
    if flags.out:
        return flags.out
    if isinstance(subject, Denoiser):
        return home(subject.opened.checkpoint.path)
    return Path("representation") / subject.name
