"""Any network of timm, by its name, as an extractor of pooled features.

--extractor timm:vit_small_patch14_dinov2.lvd142m
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.codecs import fingerprint
from runtime.errors import InputError
from runtime.precision import plain_float32

from .extractor import UNREADABLE, Features, as_color, reason_of


class TimmExtractor:
    """A network's pooled features before its last layer; no spatial ones, no classes.

    Whole images are resized to the size that timm's data configuration of the network states:
    bicubic with antialiasing, on floats, clamped to the range of images and never rounded to 8
    bits. Nothing is cropped. Other tools round, or crop: compare scores only within this one.
    """

    half_distances = reads_labels = False

    def __init__(
        self, network: nn.Module, name: str, data: dict[str, Any], device: torch.device
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.name, self.device = f"timm:{name}", device
        self.distance = f"fd_{name}"
        self.fingerprint = fingerprint(network.state_dict())
        self.size = data["input_size"][1:]
        self.mean, self.std = (
            torch.tensor(data[key], device=device).view(-1, 1, 1) for key in ("mean", "std")
        )

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, 1 or 3, H, W) -> pool (N, D).

        Raises:
            InputError: neither grey nor color.
        """
        x = as_color(images.to(self.device), self.name).float() / 255
        with plain_float32(self.device):
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True).clamp(0, 1)
            return Features(self.network((x - self.mean) / self.std).float(), spatial=None)

    def probabilities(self, pool: Tensor) -> None:
        """A network without its last layer has no classes."""


def load(name: str, weights: str | Path | None, device: torch.device) -> TimmExtractor:
    """A network of timm.

    Args:
        name: as timm calls it, with or without the tag of its weights.
        weights: a local file in any layout that timm reads for this network; None: the published
            ones, from the cache of the Hugging Face hub, or from the hub.

    Raises:
        InputError: no timm here, no such network, or no weights to be had.
    """
    try:
        import timm
        from safetensors import SafetensorError
    except ImportError as error:
        raise InputError(
            f"--extractor timm:{name} needs timm ({error}), with or without --extractor-weights: "
            "pip install '.[metrics]'"
        ) from error
    if not timm.is_model(name):
        raise InputError(f"--extractor timm:{name}: timm {timm.__version__} has no such network")
    source: dict[str, Any] = {}
    if weights:
        if not Path(weights).is_file():
            raise InputError(
                f"--extractor-weights {weights}: there is no such file; --extractor timm:{name} "
                "takes what timm reads for this network"
            )
        source = {"pretrained_cfg_overlay": {"file": str(weights)}}
    try:
        network = create(name, source, seed=0)
        # timm passes over what a file lacks: that would stay as random as it began.
        if weights and fingerprint(network.state_dict()) != fingerprint(
            create(name, source, seed=1).state_dict()
        ):
            raise ValueError("it lacks a part of the network's weights")
    except (*UNREADABLE, SafetensorError) as error:
        raise absent(name, weights, reason_of(error)) from error
    return TimmExtractor(network, name, timm.data.resolve_model_data_config(network), device)


def create(name: str, source: dict[str, Any], *, seed: int) -> nn.Module:
    """The network without its last layer, loaded over a start that is a function of the seed."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        return timm.create_model(name, pretrained=True, num_classes=0, **source)


def absent(name: str, weights: str | Path | None, reason: str) -> InputError:
    if weights:
        return InputError(
            f"--extractor-weights {weights} are no weights of --extractor timm:{name} ({reason})"
        )
    return InputError(
        f"--extractor timm:{name}: its published weights are neither in the cache of the Hugging "
        f"Face hub nor to be had from it here ({reason}); name another network with --extractor, "
        "or its file with --extractor-weights FILE"
    )
