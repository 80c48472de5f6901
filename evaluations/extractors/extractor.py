"""What a feature extractor is, and the arithmetic that all of them compute in."""

import pickle
import struct
import zipfile
from textwrap import shorten
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from runtime.errors import InputError

UNREADABLE = (  # what torch.load, timm and zipfile raise over damaged files, or those of others
    pickle.UnpicklingError, OSError, EOFError, LookupError, TypeError, ValueError, RuntimeError,
    AttributeError, AssertionError, MemoryError, OverflowError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


class Features(NamedTuple):
    pool: Tensor  # (N, D) float32, on the extractor's device
    spatial: Tensor | None  # (N, S) float32 in (h, w, c) order; None: it offers none, so no sFID
    # (N windows, D) of sounds, of which the Frechet distance is then, and pool is the first ones;
    # None: it is of pool. Neighbours are looked for in pool: windows of a sound are each other's.
    windows: Tensor | None = None


class Extractor(Protocol):
    name: str  # "inception-2015-12-05", "classifier:<sha8>", "timm:<model>"
    fingerprint: str  # SHA-256 of the weights; stored in references and results
    distance: str  # what its Frechet distance is called: "fid" is Inception's, "fvd" I3D's alone
    half_distances: bool  # precision / recall in ADM's float16 by default (Inception alone)
    reads_labels: bool  # its classes are those of the samples' labels
    rate: int | None  # samples per second of the sounds that it takes; None: any, or no sounds
    device: torch.device

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, C, H, W), or clips (N, C, T, H, W), or int16 sounds (N, channels, samples), on
        any device -> features; the caller chooses N to fit memory."""

    def probabilities(self, pool: Tensor) -> Tensor | None:
        """Pooled features (N, D) -> classes (N, K) for the Inception score; None: it has none."""


def check_rate(extractor: Extractor, rate: int | None, name: str) -> None:
    """
    Args:
        rate: of the sounds `name`, in samples per second; None: unknown, or no sounds.

    Raises:
        InputError: the extractor would hear them slower or faster than they are.
    """
    if extractor.rate is not None and rate not in (None, extractor.rate):
        raise InputError(
            f"--extractor {extractor.name} takes sounds of {extractor.rate} samples per second, "
            f"and {name} has {rate}: use --extractor classifier:FILE"
        )


def as_color(images: Tensor, name: str) -> Tensor:
    """uint8 (N, 1 or 3, H, W) -> (N, 3, H, W), grey repeated.

    Raises:
        InputError: no images, or another number of channels.
    """
    if images.ndim != 4:
        raise InputError(
            f"--extractor {name} reads images, and these are {tuple(images.shape[1:])}: use "
            "--extractor classifier:FILE, for clips i3d:FILE, for sounds clap:MODEL"
        )
    if images.shape[1] not in (1, 3):
        raise InputError(
            f"--extractor {name} reads grey or color images, not {images.shape[1]} channels: "
            "use --extractor classifier:FILE"
        )
    return images.expand(-1, 3, -1, -1)


def reason_of(error: Exception) -> str:
    """Why a file of weights could not be read, in one line."""
    # torch and timm tell people here how to run the code that the file may hold.
    if isinstance(error.__cause__ or error, pickle.UnpicklingError):
        return "it holds code, or is damaged"
    return shorten(str(error), 160, placeholder=" ...") or type(error).__name__
