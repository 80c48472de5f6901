"""Features of a data set in a folder: the targets of --loss-type external."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from domains import Batch, Domain
from runtime.errors import InputError
from runtime.untrusted import json_of, read_array, shown

FORMAT = "layersync features 1"
CARD, VALUES = "features.json", "features.npy"


@dataclass(frozen=True)
class Card:
    """features.json; features.npy beside it is (count, flips, *shape), float16 or float32.

    Features of any origin can be used: write these two files.
    """

    count: int  # images
    # 2: of the image and of its mirror image; 1: of the image, and a vector (a caption's) of both
    flips: int
    shape: tuple[int, ...]  # (Z,) or (N, Z)
    data_set: str | None  # Domain.data_set of the images; None: not known, and not checked
    made_by: str  # name and SHA-256 of the network
    format: str = FORMAT

    @property
    def kind(self) -> Literal["vector", "tokens"]:
        return "vector" if len(self.shape) == 1 else "tokens"


class FeatureStore:
    """A folder of features.

    Args:
        hflip: whether images are mirrored, where the domain does that.

    Raises:
        InputError: no such folder, damaged, or features of other samples; tokens of images alone
            for a run that mirrors them.
    """

    def __init__(self, folder: str, domain: Domain, hflip: bool = True) -> None:
        path = Path(folder)
        try:
            content = json_of(path / CARD)
            content["shape"] = tuple(int(size) for size in content["shape"])
            self.card = Card(**content)
            if not isinstance(self.card.made_by, str):
                raise ValueError(f"made_by is {shown(self.card.made_by)}")
            if self.card.format != FORMAT or len(self.card.shape) not in (1, 2):
                raise ValueError(f"{self.card.format} of shape {self.card.shape}")
            self.values = read_array(path / VALUES, mapped=True)
            expected = (self.card.count, self.card.flips, *self.card.shape)
            if self.values.shape != expected or self.values.dtype.kind != "f":
                raise ValueError(f"{VALUES} is {self.values.dtype} {self.values.shape}")
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{folder} holds no features of methods.features ({error})") from error
        theirs = domain.data_set
        if None not in (theirs, self.card.data_set) and theirs != self.card.data_set:
            raise InputError(
                f"{folder} has features of other samples than --dataset_name {domain.name}: make "
                "them again with methods.features"
            )
        images = domain.train_set(augment=hflip)
        if len(images) != self.card.count:
            raise InputError(
                f"{folder} has features of {self.card.count} samples, but --dataset_name "
                f"{domain.name} has {len(images)}"
            )
        mirrors = getattr(images, "hflip", False)  # sound and motion know no mirror image
        if mirrors and self.card.kind == "tokens" and self.card.flips == 1:
            raise InputError(
                f"{folder} has no tokens of mirror images: train with --no-hflip, or make it again "
                "without --no-flip"
            )
        self.folder, self.width, self.kind = folder, self.card.shape[-1], self.card.kind

    def of(self, batch: Batch) -> Tensor:
        """(B, *shape) as stored.

        Raises:
            ValueError: naming the image whose features are not finite.
        """
        index = batch.index.numpy()
        mirrored = self.card.flips == 2 and batch.flipped is not None
        flip = batch.flipped.numpy().astype(np.int64) if mirrored else 0
        values = torch.from_numpy(self.values[index, flip])
        finite = values.isfinite().flatten(1).all(1)
        if not finite.all():
            wrong = index[~finite.numpy()][0]
            raise ValueError(f"{self.folder}: the features of image {wrong} are not finite")
        return values


class StoredTargets:
    """The features of a batch's images out of several stores."""

    def __init__(self, folders: list[str], domain: Domain, hflip: bool) -> None:
        self.stores = [FeatureStore(folder, domain, hflip) for folder in folders]
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
