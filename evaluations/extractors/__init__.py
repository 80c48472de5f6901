"""Feature extractors behind one protocol; `open_extractor` knows them by name."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from runtime.errors import InputError

from .extractor import Extractor, Features, check_rate

__all__ = ["Extractor", "Features", "check_rate", "open_extractor"]

# Imported where they are opened, for timm is optional.


def open_inception(
    argument: str, device: torch.device, weights: Path | None, allow_unverified: bool
) -> Extractor:
    from . import inception

    if argument:
        raise InputError(f"--extractor inception:{argument}: its file is --inception-weights FILE")
    return inception.load(weights, device, allow_unverified=allow_unverified)


def open_classifier(argument: str, device: torch.device, *_: Any) -> Extractor:
    from . import classifier

    return classifier.load(argument).to(device)


def open_timm(argument: str, device: torch.device, weights: Path | None, _: bool) -> Extractor:
    from . import timm

    return timm.load(argument, weights, device)


def open_clap(argument: str, device: torch.device, *_: Any, kind: str) -> Extractor:
    from . import clap

    return clap.load(kind, argument, device)


def open_i3d(argument: str, device: torch.device, _: Any, allow_unverified: bool) -> Extractor:
    from . import i3d

    return i3d.load(argument, device, allow_unverified=allow_unverified)


OPENERS = {
    "inception": open_inception, "classifier": open_classifier, "timm": open_timm,
    "clap": partial(open_clap, kind="clap"), "clap-fadtk": partial(open_clap, kind="clap-fadtk"),
    "i3d": open_i3d,
}  # fmt: skip


def open_extractor(
    asked: str, device: torch.device, *, weights: Path | None = None, allow_unverified: bool = False
) -> Extractor:
    """The extractor that --extractor names.

    Args:
        asked: "inception", "classifier:FILE", "timm:MODEL", "clap:MODEL", "clap-fadtk:MODEL" or
            "i3d:FILE".
        weights: its file, where it is not where the extractor looks by itself.
        allow_unverified: take an Inception or I3D of another SHA-256 than the published one.

    Raises:
        InputError: an unknown name, or weights that are absent, damaged or of something else.
    """
    name, _, argument = asked.partition(":")
    if name not in OPENERS:
        raise InputError(
            f"unknown --extractor {asked!r}; choose from inception, classifier:FILE, timm:MODEL, "
            "clap:MODEL, clap-fadtk:MODEL, i3d:FILE"
        )
    return OPENERS[name](argument, device, weights, allow_unverified)
