"""Alignment with an encoder that has neither images nor weights: speed depends on neither."""

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import domains
from benchmarks.ours import StepFlags, config_of
from domains.codecs import PIXELS
from evaluations.extractors.timm import Asked, open_network
from methods import METHODS
from training import build


@dataclass(frozen=True)
class EncoderFlags(StepFlags):
    encoder: str = "vit_base_patch14_dinov2.lvd142m"  # of timm; whose tokens repa, external take


class Made:
    """Targets (B, N, Z) that `make` gives in every step, whatever the batch; in one process, where
    nobody asks for an example of them."""

    identity = ["random weights"]

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make = make

    def attach(self, batch: domains.Batch) -> domains.Batch:
        return batch

    def __call__(self, batch: domains.Batch) -> tuple[Tensor, ...]:
        return (self.make(),)

    def to(self, device: torch.device) -> "Made":
        return self


def aligned(flags: EncoderFlags, device: torch.device, *, stored: bool) -> tuple[Any, ...]:
    """The parts of a run of REPA on synthetic latents, beside which random images lie.

    Args:
        stored: its tokens are in memory, in float16, as --loss-type external reads them from a
            folder; else the encoder makes them in every step.

    Raises:
        ValueError: no timm, no such encoder, or latents of no images.
    """
    config, domain, transport, model, _ = build(config_of(flags, loss_type="vanilla"), device)
    side = domain.raw_shape[-1]
    pictures = domains.build("imagenet-1k", image_size=side, vae=PIXELS)
    with tempfile.TemporaryDirectory() as made:
        weights = random_weights(flags.encoder, Path(made))
        asked = dict(loss_type="repa", repa_encoder=flags.encoder, repa_weights=str(weights))
        config, method = METHODS["repa"](dataclasses.replace(config, **asked), model, pictures)
    encoder = method.targets.to(device).encoder
    micro_batch = flags.batch // flags.grad_accum
    images = torch.randint(256, (micro_batch, 3, side, side), dtype=torch.uint8, device=device)
    make = encoder.tokens(images).half().float if stored else partial(encoder.tokens, images)
    return config, domain, transport, model, method._replace(targets=Made(make))


def random_weights(encoder: str, folder: Path) -> Path:
    """A file of them, in the shape of timm's."""
    network = open_network(encoder, None, Asked(f"--encoder {encoder}", ""), pretrained=False)
    torch.save(network.state_dict(), folder / "encoder.pth")
    return folder / "encoder.pth"
