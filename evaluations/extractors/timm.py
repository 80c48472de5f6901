"""Any network of timm, by its name, as an extractor of pooled features.

--extractor timm:vit_small_patch14_dinov2.lvd142m
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.codecs import fingerprint
from runtime.errors import InputError
from runtime.hub import hub_answers
from runtime.precision import plain_float32
from runtime.tensors import check_pickles

from .extractor import UNREADABLE, Features, as_color, reason_of


class TimmExtractor:
    """A network's pooled features before its last layer; no spatial ones, no classes.

    Whole images are resized to the size that timm's data configuration of the network states:
    bicubic with antialiasing, on floats, clamped to the range of images and never rounded to 8
    bits. Nothing is cropped. Other tools round, or crop: compare scores only within this one.
    """

    half_distances = reads_labels = False
    rate = None

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


class Asked(NamedTuple):
    """What the user calls a network and its file."""

    network: str  # "--extractor timm:NAME"
    weights: str  # "--extractor-weights"


def load(name: str, weights: str | Path | None, device: torch.device) -> TimmExtractor:
    """A network of timm, by its name, with or without the tag of its weights.

    Raises:
        InputError: no timm here, no such network, or no weights to be had.
    """
    network = open_network(name, weights, Asked(f"--extractor timm:{name}", "--extractor-weights"))
    import timm

    return TimmExtractor(network, name, timm.data.resolve_model_data_config(network), device)


def open_network(
    name: str, weights: str | Path | None, asked: Asked, *, pretrained: bool = True, **options: Any
) -> nn.Module:
    """A network of timm without its last layer.

    Args:
        weights: a local file in any layout that timm reads for this network; None: the published
            ones, from the cache of the Hugging Face hub, or from the hub.
        pretrained: False leaves it at its random start.
        options: of timm.create_model.

    Raises:
        InputError: no timm here, no such network, or no weights to be had.
    """
    try:
        import huggingface_hub
        import timm
        from safetensors import SafetensorError
    except ImportError as error:
        raise InputError(
            f"{asked.network} needs timm ({error}), with or without {asked.weights}: "
            "pip install '.[metrics]'"
        ) from error
    if not timm.is_model(name):
        raise InputError(f"{asked.network}: timm {timm.__version__} has no such network")
    if weights:
        if not Path(weights).is_file():
            raise InputError(
                f"{asked.weights} {weights}: there is no such file; {asked.network} takes what "
                "timm reads for this network"
            )
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
    elif pretrained and not hub_answers():  # the cache alone, or its client retries for a minute
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    options["pretrained"] = pretrained
    try:
        if weights and Path(weights).suffix not in (".safetensors", ".npz"):
            check_pickles(Path(weights))  # timm reads it by torch.load
        network = create(name, options, seed=0)
        # timm passes over what a file lacks: that would stay as random as it began.
        if weights and fingerprint(network.state_dict()) != fingerprint(
            create(name, options, seed=1).state_dict()
        ):
            raise ValueError("it lacks a part of the network's weights")
    except (*UNREADABLE, SafetensorError) as error:
        raise absent(weights, asked, reason_of(error)) from error
    return network


def create(name: str, options: dict[str, Any], *, seed: int) -> nn.Module:
    """The network without its last layer, loaded over a start that is a function of the seed."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        return timm.create_model(name, num_classes=0, **options)


def absent(weights: str | Path | None, asked: Asked, reason: str) -> InputError:
    if weights:
        return InputError(f"{asked.weights} {weights} are no weights of {asked.network} ({reason})")
    from huggingface_hub import constants

    return InputError(
        f"{asked.network}: its published weights are neither in the cache of the Hugging Face hub, "
        f"{constants.HF_HUB_CACHE} (HF_HOME), nor to be had from the hub here ({reason}); name "
        f"another network, or its file with {asked.weights} FILE"
    )
