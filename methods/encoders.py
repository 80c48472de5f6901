"""Targets from a frozen image encoder, computed in the loop: REPA's DINOv2 through timm."""

import torch
from torch import Tensor

from domains import Batch, Domain
from evaluations.extractors.timm import Asked
from evaluations.extractors.vit import VisionTransformer
from runtime.errors import InputError


class EncoderTargets:
    """Patch tokens after the encoder's final norm, one per token of the model, of the image of this
    step with the latent's crop and flip.

    Raises:
        InputError: no timm, no such encoder, no weights, or a domain without images.
    """

    def __init__(
        self, name: str, weights: str | None, grid: tuple[int, ...], domain: Domain
    ) -> None:
        if domain.stored_in:
            raise InputError(
                f"--loss-type repa sees images, but {domain.stored_in} holds latents: train on "
                "images, or store the encoder's tokens with methods.features --encoder and use "
                "--loss-type external"
            )
        if not domain.has_pictures:
            raise InputError(f"--loss-type repa sees images, and {domain.name} has none")
        asked = Asked(f"--repa-encoder {name}", "--repa-weights")
        self.encoder = VisionTransformer(name, weights, grid, asked)
        self.width = self.encoder.width
        self.identity = [f"{name} {self.encoder.fingerprint}"]

    def attach(self, batch: Batch) -> Batch:
        return batch

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        return (self.encoder.tokens(batch.raw),)

    def example(self, size: int, device: torch.device) -> tuple[Tensor, ...]:
        tokens = torch.Size(self.encoder.grid).numel()
        return (torch.zeros(size, tokens, self.width, device=device),)

    def to(self, device: torch.device) -> "EncoderTargets":
        self.encoder.to(device)
        return self
