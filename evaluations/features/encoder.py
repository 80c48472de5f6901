"""Blocks of a frozen image encoder: DINOv2, CLIP, MAE ... through timm."""

from typing import Any

from torch import Tensor

from domains import Batch
from evaluations.extractors.vit import VisionTransformer

from .subject import Subject, chosen_blocks


class Encoder(Subject):
    """A vision transformer of timm as a subject: its patch tokens, before the final norm.

    Images are resized to its patches times its grid, bicubic, and antialiased where that halves
    them or more; grey ones are repeated to three channels. Class and register tokens are left out.

    Raises:
        InputError: a block that does not exist.
    """

    def __init__(self, network: VisionTransformer, asked: tuple[int, ...] = ()) -> None:
        self.network, self.name = network, network.name
        self.blocks, self.grid = chosen_blocks(asked, network.depth), network.grid
        self.device = network.mean.device

    @property
    def identity(self) -> dict[str, Any]:
        resized = "bicubic, antialiased from a half on"  # features of before are not found again
        return {
            "network": self.network.fingerprint, "grid": list(self.network.grid),
            "resized": resized,
        }  # fmt: skip

    def tokens(self, batch: Batch, draw: int = 0) -> dict[int, Tensor]:
        return self.network.blocks(batch.raw, self.blocks)
