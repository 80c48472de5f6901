"""What the metrics ask of features, and the device on which they compute in float64."""

import torch
from torch import Tensor


def check_features(features: Tensor, called: str = "features", least: int = 0) -> None:
    """Refuse features that no metric can work with.

    Raises:
        ValueError: features that are not (N, D), fewer than `least` rows, NaN or infinity.
    """
    if features.ndim != 2:
        raise ValueError(f"{called} must be (N, D), not of shape {tuple(features.shape)}")
    if len(features) < least:
        raise ValueError(f"{called}: at least {least} rows are needed, not {len(features)}")
    if not torch.isfinite(features).all():
        raise ValueError(f"{called} hold NaN or infinity")


def check_pair(reference: Tensor, samples: Tensor, least: int) -> None:
    """Refuse two sets that cannot be compared.

    Raises:
        ValueError: as `check_features` for either, or they differ in dimension.
    """
    check_features(reference, "reference features", least)
    check_features(samples, "sample features", least)
    check_dimensions(reference.shape[1], samples.shape[1])


def check_dimensions(one: int, other: int) -> None:
    """Refuse features of two extractors.

    Raises:
        ValueError: they differ.
    """
    if one != other:
        raise ValueError(
            f"features of {one} and of {other} dimensions cannot be compared: "
            "both sides need the same extractor"
        )


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64 (Apple's MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def in_float64(tensor: Tensor) -> Tensor:
    """The same numbers in float64, without a gradient."""
    return tensor.detach().to(float64_device(tensor.device)).double()
