"""Latents with the Stable Diffusion VAE: a saved one, or random weights of its shape, as fast."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

import domains
from domains.codecs import autoencoder_class, read_config

SIDE = 32  # of the latents
STABLE_DIFFUSION = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
    sample_size=256,
    scaling_factor=0.18215,
)


def with_autoencoder(folder: str | None, device: torch.device) -> domains.Domain:
    """Latents (4, 32, 32) whose codec is the VAE of `--vae folder`, on the device; without a
    folder, random weights in the shape of sd-vae-ft-ema: speed does not depend on them.

    Raises:
        InputError: diffusers is missing, or the folder holds no AutoencoderKL.
    """
    if folder is not None:
        levels = len(read_config(folder, None)["block_out_channels"])
        size = SIDE * 2 ** (levels - 1)
        domain = domains.build("latents", vae=folder, image_size=size, num_classes=1000)
        domain.codec.to(device)
        return domain
    with tempfile.TemporaryDirectory() as made:
        autoencoder_class("ema")(**STABLE_DIFFUSION).save_pretrained(Path(made) / "vae")
        return with_autoencoder(str(Path(made) / "vae"), device)


def random_images(domain: domains.Domain, size: int, device: torch.device) -> Tensor:
    """(B, 3, H, W) in [-1, 1], of the domain's size."""
    return torch.rand(size, *domain.raw_shape, device=device) * 2 - 1
