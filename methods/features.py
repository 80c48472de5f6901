"""Features of a data set, stored once: the targets of --loss-type external.

python -m methods.features digits --extractor classifier:clf.pt --out features/digits
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import domains
from domains import Batch, Domain
from domains.codecs import PIXELS
from domains.images import ImageDomain
from domains.latents import LatentDomain
from domains.store import MomentStore
from evaluations.extractors import open_extractor
from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError, LocalError
from runtime.files import atomic_write, write_json

from .encoders import EncoderTargets

FORMAT = "layersync features 1"
CARD, VALUES = "features.json", "features.npy"


@dataclass(frozen=True)
class Card:
    """features.json; features.npy beside it is (count, flips, *shape), float16 or float32.

    Features of any origin can be used: write these two files.
    """

    count: int  # images
    flips: int  # 2: of the image and of its mirror image; 1: the same for both
    shape: tuple[int, ...]  # (Z,) or (N, Z)
    data_set: str | None  # Source.fingerprint of the images; None: not known, and not checked
    made_by: str  # name and SHA-256 of the network
    format: str = FORMAT

    @property
    def kind(self) -> Literal["vector", "tokens"]:
        return "vector" if len(self.shape) == 1 else "tokens"


class FeatureStore:
    """A folder of features.

    Raises:
        InputError: no such folder, damaged, or features of other images.
    """

    def __init__(self, folder: str, domain: Domain) -> None:
        path = Path(folder)
        try:
            content = json.loads((path / CARD).read_text())
            content["shape"] = tuple(int(size) for size in content["shape"])
            self.card = Card(**content)
            if self.card.format != FORMAT or len(self.card.shape) not in (1, 2):
                raise ValueError(f"{self.card.format} of shape {self.card.shape}")
            self.values = np.load(path / VALUES, mmap_mode="r", allow_pickle=False)
            expected = (self.card.count, self.card.flips, *self.card.shape)
            if self.values.shape != expected or self.values.dtype.kind != "f":
                raise ValueError(f"{VALUES} is {self.values.dtype} {self.values.shape}")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"{folder} holds no features of methods.features ({error})") from error
        theirs = fingerprint_of(domain)
        if None not in (theirs, self.card.data_set) and theirs != self.card.data_set:
            raise InputError(
                f"{folder} has features of other images than --dataset_name {domain.name}: make "
                "them again with methods.features"
            )
        count = len(domain.train_set())
        if count != self.card.count:
            raise InputError(
                f"{folder} has features of {self.card.count} images, but --dataset_name "
                f"{domain.name} has {count}"
            )
        self.folder, self.width, self.kind = folder, self.card.shape[-1], self.card.kind

    def of(self, batch: Batch) -> Tensor:
        """(B, *shape) as stored.

        Raises:
            ValueError: naming the image whose features are not finite.
        """
        index = batch.index.numpy()
        flip = batch.flipped.numpy().astype(np.int64) if self.card.flips == 2 else 0
        values = torch.from_numpy(self.values[index, flip])
        finite = values.isfinite().flatten(1).all(1)
        if not finite.all():
            wrong = index[~finite.numpy()][0]
            raise ValueError(f"{self.folder}: the features of image {wrong} are not finite")
        return values


class StoredTargets:
    """The features of a batch's images out of several stores."""

    def __init__(self, folders: list[str], domain: Domain) -> None:
        self.stores = [FeatureStore(folder, domain) for folder in folders]
        self.identity = [store.card.made_by for store in self.stores]

    def attach(self, batch: Batch) -> Batch:
        if batch.error is not None:
            return batch
        try:
            return batch._replace(stored=tuple(store.of(batch) for store in self.stores))
        except ValueError as error:
            return batch._replace(error=str(error))

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        return tuple(values.float() for values in batch.stored)

    def example(self, size: int, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(size, *store.card.shape, device=device) for store in self.stores)

    def to(self, device: torch.device) -> "StoredTargets":
        return self


def fingerprint_of(domain: Domain) -> str | None:
    """Of the images of a domain, or of those that its latents were made of; None: not known."""
    if isinstance(domain, ImageDomain):
        return domain.train_source.fingerprint()
    if isinstance(domain, LatentDomain) and isinstance(domain.source, MomentStore):
        return domain.source.manifest.encoding.data_set
    return None


@dataclass(frozen=True)
class Flags:
    """Store what a network sees in every image of a data set, and in its mirror image.

    A vector per image by --extractor, or tokens by --encoder, REPA's targets: they make --loss-type
    external of REPA, on stored latents too.

    python -m methods.features digits --extractor classifier:clf.pt --out features/digits
    python -m methods.features imagenet-1k --encoder vit_base_patch14_dinov2.lvd142m --out dino
    """

    data: tyro.conf.Positional[str]  # a --dataset_name
    out: Path  # the folder to write
    extractor: str | None = None  # classifier:FILE, timm:MODEL or inception: pooled features
    encoder: str | None = None  # a vision transformer of timm: its patch tokens
    grid: int = 16  # tokens along a side, as many as the model's
    weights: Path | None = None  # their file; None: where each looks by itself
    data_path: str | None = None  # folder of the data, where it is local
    image_size: int | None = None  # pixels; None: the data set's
    num_classes: int | None = None  # None: the data set's
    cache_dir: str = "./cache/"  # downloads of data sets
    batch_size: int = 64  # images at a time
    num_workers: int = 4  # processes that decode
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one


class Seer(NamedTuple):
    """Who looks at the images."""

    made_by: str
    look: Callable[[Batch], Tensor]  # features (B, Z) or (B, N, Z)


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start(flags.device)
    if ranks.size > 1:
        raise InputError("methods.features runs as one process: start it without torchrun")
    domain = domains.build(
        flags.data, data_path=flags.data_path, image_size=flags.image_size,
        num_classes=flags.num_classes, vae=PIXELS, cache_dir=flags.cache_dir,
    )  # fmt: skip
    seer = seer_of(flags, domain, ranks.device)
    images = domain.train_set(augment=False)
    with atomic_write(flags.out / VALUES) as file:
        shape = write_values(file, seer, images, flags, ranks.device)
    card = Card(
        count=len(images), flips=2, shape=shape, data_set=fingerprint_of(domain),
        made_by=seer.made_by,
    )  # fmt: skip
    write_json(flags.out / CARD, dataclasses.asdict(card))  # last: with a card it is complete
    print(f"{flags.out}: {card.count} images, {card.kind} of {card.shape} by {card.made_by}")


def seer_of(flags: Flags, domain: Domain, device: torch.device) -> Seer:
    """
    Raises:
        InputError: not exactly one of --extractor and --encoder, or no weights.
    """
    if (flags.extractor is None) == (flags.encoder is None):
        raise InputError("give --extractor for vectors or --encoder for tokens, one of them")
    if flags.extractor:
        extractor = open_extractor(flags.extractor, device, weights=flags.weights)
        made_by = f"{extractor.name} {extractor.fingerprint}"
        return Seer(made_by, lambda batch: extractor(batch.raw).pool)
    weights = None if flags.weights is None else str(flags.weights)
    encoder = EncoderTargets(flags.encoder, weights, (flags.grid, flags.grid), domain).to(device)
    return Seer(encoder.identity[0], lambda batch: encoder(batch)[0])


def write_values(
    file: IO[bytes], seer: Seer, images: domains.DataSet, flags: Flags, device: torch.device
) -> tuple[int, ...]:
    """The array (N, 2, *shape), float16, as a .npy, a batch at a time; its shape per image.

    Raises:
        LocalError: a corrupt image, or features that are not finite in float16.
    """
    batches = [
        domains.Draws.plain(range(first, min(first + flags.batch_size, len(images))))
        for first in range(0, len(images), flags.batch_size)
    ]
    workers = flags.num_workers if images.decodes else 0
    loader = DataLoader(
        images, batch_sampler=batches, collate_fn=domains.as_read, num_workers=workers
    )
    shape: tuple[int, ...] | None = None
    for batch in tqdm(loader, unit="batch"):
        batch = batch.checked().to_device(device)
        both = (batch, batch._replace(raw=batch.raw.flip(-1)))
        values = torch.stack([seer.look(one) for one in both], dim=1).half().cpu().numpy()
        if not np.isfinite(values).all():
            raise LocalError(f"{seer.made_by} gives features that are not finite in float16")
        if shape is None:
            shape = values.shape[2:]
            header = {"descr": "<f2", "fortran_order": False, "shape": (len(images), 2, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(values.astype("<f2").tobytes())
    return shape


if __name__ == "__main__":
    run(main)
