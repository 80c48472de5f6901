"""Vision transformers of timm as encoders of patches: what REPA aligns to, and what the evaluations
of features compare blocks with.

--repa-encoder vit_base_patch14_dinov2.lvd142m; encoder timm:vit_base_patch14_dinov2.lvd142m
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.codecs import fingerprint
from runtime.errors import InputError

from .timm import Asked, open_network

# What timm's plain transformers have: ViT in all its trainings, EVA, DINOv3.
NEEDED = ("patch_embed", "blocks", "norm", "num_prefix_tokens", "forward_intermediates")


class VisionTransformer:
    """A frozen encoder whose patches are as many as `grid` says.

    As REPA prepares images: normalized by the encoder's mean and deviation and resized (bicubic,
    not antialiased) to its patch times the grid: 224 pixels for patches of 14 on 16x16. Images of
    twice that and more, 512 pixels, are antialiased. Positions are resampled to the grid by timm,
    as in REPA; torch.hub's DINOv2 does it slightly differently.

    Args:
        name: of a timm vision transformer.
        weights: a local file; None: timm's, from the hub's cache or the hub.
        grid: patches in rows and columns.
        asked: what the user calls network and file, for the sentences.

    Raises:
        InputError: no timm, no such encoder, or no weights.
    """

    def __init__(
        self, name: str, weights: str | Path | None, grid: Sequence[int], asked: Asked
    ) -> None:
        patch = patch_of(name, asked)
        self.size = tuple(n * p for n, p in zip(grid, patch, strict=True))
        self.network = open_network(name, weights, asked, img_size=self.size)
        self.asked = asked
        self.network.eval().requires_grad_(False)
        self.name, self.fingerprint = name, fingerprint(self.network.state_dict())
        self.grid, self.width = tuple(grid), self.network.num_features
        self.depth = len(self.network.blocks)
        import timm

        data = timm.data.resolve_model_data_config(self.network)
        self.mean, self.std = (torch.tensor(data[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, H, W) -> what the network reads."""
        x = images.expand(-1, 3, -1, -1).float() / 255
        x = (x - self.mean) / self.std
        halved = any(side >= 2 * own for side, own in zip(x.shape[2:], self.size, strict=True))
        return F.interpolate(x, self.size, mode="bicubic", antialias=halved)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """uint8 images -> patch tokens after the final norm (B, N, Z) float32.

        Raises:
            InputError: the network pools them before it.
        """
        if isinstance(self.network.norm, nn.Identity):
            raise InputError(f"{self.asked.network}: it has no norm over its patch tokens")
        features = self.network.forward_features(self.pixels(images))
        return features[:, self.network.num_prefix_tokens :].float()

    @torch.no_grad()
    def blocks(self, images: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        """uint8 images -> patch tokens of blocks, counted from 1, before the final norm."""
        found = self.network.forward_intermediates(
            self.pixels(images), indices=[number - 1 for number in numbers], norm=False,
            stop_early=True, output_fmt="NLC", intermediates_only=True,
        )  # fmt: skip
        return {number: tokens.float() for number, tokens in zip(numbers, found, strict=True)}

    def to(self, device: torch.device) -> "VisionTransformer":
        self.network.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self


def patch_of(name: str, asked: Asked) -> tuple[int, int]:
    """The patch of a vision transformer, without its weights."""
    plain = open_network(name, None, asked, pretrained=False)
    if not all(hasattr(plain, part) for part in NEEDED):
        raise InputError(f"{asked.network}: it is no vision transformer of timm")
    return plain.patch_embed.patch_size
